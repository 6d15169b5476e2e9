"""`patches` and `unroll` are a convolutional layer: values and gradients are those of `jax.lax.conv` under BPTT."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import CELLS, assert_close, loss_of_outputs

import hyprjax as hj

T, B, H, W, C = 9, 2, 6, 5, 2
LAYOUT = ("NHWC", "HWIO", "NHWC")
GEOMETRIES = [((3, 3), 1, "SAME"), ((2, 3), (2, 1), "SAME"), ((3, 2), (1, 2), "VALID")]


def convolve(x, w_in, window, stride, padding):
    """One step `[batch, h, w, c]`, by JAX's own convolution."""
    kernel = w_in.reshape(*window, -1, w_in.shape[1])
    strides = (stride, stride) if isinstance(stride, int) else stride
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)


def conv_layer(cell, params, x, geometry):
    """A convolutional layer as a plain scan over `[T, batch, h, w, c]`."""
    places = jax.eval_shape(lambda x: convolve(x, params["w_in"], *geometry), x[0]).shape[:-1]

    def step(state, x):
        return cell.step(params["neuron"], state, convolve(x, params["w_in"], *geometry) + params["bias"])

    return jax.lax.scan(step, cell.rest(params["neuron"], places, x.dtype), x)[1]


def hypr_layer(cell, params, x, geometry):
    window, stride, padding = geometry
    return hj.unroll(cell, params, hj.patches(x, window, stride=stride, padding=padding))


def make_layer(seed, cell, channels, n, window):
    layer = hj.init_layer(jax.random.key(seed), cell, window[0] * window[1] * channels, n, dtype=jnp.float64)
    return {**layer, "w_in": layer["w_in"] + 0.05, "bias": layer["bias"] + 0.1}


def one_layer(name="alif", geometry=GEOMETRIES[0]):
    """A loss of `(params, xs)` that takes the layer, parameters and data."""
    cell = CELLS[name]
    params = make_layer(0, cell, C, 3, geometry[0])
    x = jax.random.normal(jax.random.key(1), (T, B, H, W, C), jnp.float64)
    places = jax.eval_shape(lambda x: hypr_layer(cell, params, x, geometry), x).shape
    xs = {"images": x, "weights": jax.random.normal(jax.random.key(2), places, jnp.float64)}
    loss = lambda layer: lambda p, xs: loss_of_outputs(layer(cell, p, xs["images"], geometry), xs["weights"])  # noqa: E731
    return loss, params, xs


# --- the operation --------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("window", [(1, 1), (2, 4), (6, 5)])
def test_patches_times_weights_are_a_convolution(window, padding):
    x = jax.random.normal(jax.random.key(0), (T, B, H, W, C), jnp.float64)
    w_in = jax.random.normal(jax.random.key(1), (window[0] * window[1] * C, 3), jnp.float64)
    for stride in (1, 2, (3, 1), (1, 4)):
        actual = hj.patches(x, window, stride=stride, padding=padding) @ w_in
        expected = jax.vmap(lambda x, stride=stride: convolve(x, w_in, window, stride, padding))(x)
        assert_close(actual, expected, 1e-12)


def test_there_are_as_many_patches_as_places_of_the_convolution():
    for length, size, stride, padding in itertools.product(range(1, 7), range(1, 5), range(1, 5), ("SAME", "VALID")):
        if padding == "SAME" or size <= length:
            x, w_in = jnp.ones((1, 1, length, 1)), jnp.ones((size, 1))
            geometry = ((1, size), (1, stride), padding)
            expected = jax.eval_shape(lambda x, w_in=w_in, g=geometry: convolve(x, w_in, *g), x).shape
            actual = jax.eval_shape(lambda x, g=geometry: hj.patches(x, g[0], stride=g[1], padding=g[2]), x).shape
            assert actual == (*expected[:-1], size)


def test_an_int_is_a_square_and_dtypes_stay():
    spikes = jax.random.bernoulli(jax.random.key(0), 0.5, (T, B, H, W, C))
    assert hj.patches(spikes, 3, stride=2).dtype == bool
    assert (hj.patches(spikes, 3, stride=2) == hj.patches(spikes, (3, 3), stride=(2, 2))).all()
    assert hj.patches(spikes.astype(jnp.bfloat16), np.int64(3)).dtype == jnp.bfloat16
    assert hj.patches(spikes[:, 0], 3).shape == (T, H, W, 9 * C)


def test_vmap_and_jit_change_nothing():
    x = jax.random.normal(jax.random.key(0), (T, B, H, W, C), jnp.float64)
    patches = lambda x: hj.patches(x, (3, 2), stride=(2, 1), padding="VALID")  # noqa: E731
    assert (jax.jit(jax.vmap(patches, 1, 1))(x) == patches(x)).all()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            ((T, H, W), 3),
            {},
            ValueError,
            r"must be \[T, \*batch, height, width, channels\].*\(9, 6, 5\).*\[\.\.\., None\]",
        ),
        (((T, H, W, C), (7, 3)), {"padding": "VALID"}, ValueError, r'7 x 3 does not fit into .* 6 x 5.*padding="SAME"'),
        (
            ((T, H, W, C), (3, 3, 3)),
            {},
            ValueError,
            r"window must be an int or a pair \(height, width\), got \(3, 3, 3\)",
        ),
        (((T, H, W, C), 0), {}, ValueError, "window must be a positive int, got 0"),
        (((T, H, W, C), 3), {"stride": (1, 0)}, ValueError, "stride must be a positive int, got 0"),
        (((T, H, W, C), 3), {"stride": 1.5}, TypeError, "stride must be an int, got 1.5"),
        (((T, H, W, C), 3), {"padding": "FULL"}, ValueError, "padding must be one of 'SAME', 'VALID', got 'FULL'"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_traced(arguments, options, error, message):
    shape, window = arguments
    with pytest.raises(error, match=f"patches: .*{message}"):
        jax.eval_shape(lambda x: hj.patches(x, window, **options), jnp.ones(shape))


def test_a_kernel_of_another_size_is_refused_with_its_number_of_rows():
    layer = make_layer(0, CELLS["lif"], C, 3, (3, 3))
    with pytest.raises(ValueError, match=r"18 input rows but inputs have 50 features.*n_in=50"):
        hj.unroll(CELLS["lif"], layer, hj.patches(jnp.ones((T, B, H, W, C)), 5))


# --- one layer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "geometry"), list(zip(["lif", "alif", "lif"], GEOMETRIES, strict=True)), ids=str)
def test_gradient_of_one_layer_is_bptt_through_the_convolution_for_every_segment_length(name, geometry):
    loss, params, xs = one_layer(name, geometry)
    expected_loss, expected = jax.value_and_grad(loss(conv_layer))(params, xs)
    for segment_length in (1, 7, T):
        transform = hj.hypr_value_and_grad(loss(hypr_layer), segment_length=segment_length)
        value, actual = jax.jit(transform)(params, xs)
        assert jnp.allclose(value, expected_loss, rtol=1e-12)
        assert_close(actual, expected, 1e-12)


def test_a_stream_adds_up_to_bptt_through_the_convolution():
    loss, params, xs = one_layer()
    learner = hj.hypr_stream(loss(hypr_layer))
    carry, total = learner.init(params, xs), jax.tree.map(jnp.zeros_like, params)
    for start, stop in itertools.pairwise((0, 1, 4, T)):
        segment = jax.tree.map(lambda x, part=slice(start, stop): x[part], xs)
        (_, grads), carry = learner.value_and_grad(params, carry, segment)
        total = jax.tree.map(jnp.add, total, grads)
    assert_close(total, jax.grad(loss(conv_layer))(params, xs), 1e-12)


def test_traces_of_rank_one_are_exact_for_equal_time_constants():
    loss, params, xs = one_layer("lif")
    actual = hj.hypr_grad(loss(hypr_layer), segment_length=4, traces="factored", trace_rank=1)(params, xs)
    assert_close(actual, jax.grad(loss(conv_layer))(params, xs), 1e-12)


def test_a_network_over_seeds_and_images_under_vmap():
    loss, params, xs = one_layer("lif", GEOMETRIES[1])
    many = jax.vmap(lambda gain: {**params, "w_in": gain * params["w_in"]})(jnp.array([0.5, 1.0, 2.0]))

    def image_by_image(params, xs):
        one = jax.vmap(lambda x: hypr_layer(CELLS["lif"], params, x, GEOMETRIES[1]), 1, 1)
        return loss_of_outputs(one(xs["images"]), xs["weights"])

    actual = jax.vmap(hj.hypr_grad(image_by_image, segment_length=4), in_axes=(0, None))(many, xs)
    assert_close(actual, jax.vmap(jax.grad(loss(conv_layer)), in_axes=(0, None))(many, xs), 1e-12)


def test_images_below_get_their_gradient():
    """Of the patches as of the convolution: `hypr` hands it to an encoder outside of the wrapper."""
    loss, params, xs = one_layer("lif")
    model = hj.hypr(lambda params, x: hypr_layer(CELLS["lif"], params, x, GEOMETRIES[0]), segment_length=T)
    of_images = lambda x: loss_of_outputs(model(params, x), xs["weights"])  # noqa: E731
    expected = jax.grad(lambda x: loss(conv_layer)(params, {**xs, "images": x}))(xs["images"])
    assert_close(jax.grad(of_images)(xs["images"]), expected, 1e-12)


def test_weights_in_front_of_a_layer_get_credit_within_a_segment_and_inside_of_w_in_all_of_it():
    _, params, xs = one_layer("lif")
    below = {"encoder": jax.random.normal(jax.random.key(4), (9 * C, 9 * C), jnp.float64), "layer": params}

    def in_front(p, xs):
        encoded = hj.patches(xs["images"], 3) @ p["encoder"]
        return loss_of_outputs(hj.unroll(CELLS["lif"], p["layer"], encoded), xs["weights"])

    def inside(p, xs):
        layer = {**p["layer"], "w_in": p["encoder"] @ p["layer"]["w_in"]}
        return loss_of_outputs(hj.unroll(CELLS["lif"], layer, hj.patches(xs["images"], 3)), xs["weights"])

    expected = jax.jit(jax.grad(in_front))(below, xs)
    assert_close(jax.jit(hj.hypr_grad(inside, segment_length=1))(below, xs), expected, 1e-12)
    assert_close(jax.jit(hj.hypr_grad(in_front, segment_length=T))(below, xs), expected, 1e-12)
    short = jax.jit(hj.hypr_grad(in_front, segment_length=1))(below, xs)
    assert_close(short["layer"], expected["layer"], 1e-12)
    lost = jnp.linalg.norm(short["encoder"] - expected["encoder"]) / jnp.linalg.norm(expected["encoder"])
    assert lost > 0.1


def test_the_batch_may_be_split_over_devices():
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    loss, params, xs = one_layer("lif", GEOMETRIES[1])
    expected = hj.hypr_grad(loss(hypr_layer), segment_length=4)(params, xs)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("batch",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            split = jax.device_put(xs, NamedSharding(mesh, P(None, "batch")))
            everywhere = jax.device_put(params, NamedSharding(mesh, P()))
            actual = jax.jit(hj.hypr_grad(loss(hypr_layer), segment_length=4))(everywhere, split)
        assert_close(jax.device_get(actual), jax.device_get(expected), 1e-12)


# --- networks -------------------------------------------------------------------------------------


def network(layer, pool):
    """Two convolutional layers with pooling behind each, and a readout of all that is left."""

    def model(params, x):
        x = layer(CELLS["lif"], params["first"], x, ((3, 3), 1, "SAME"))
        x = pool(x.reshape(*x.shape[:-3], 3, 2, 2, 2, -1), (-4, -2))
        x = layer(CELLS["alif"], params["second"], x, ((2, 2), 1, "SAME"))
        x = x.mean((-3, -2))
        return readout(layer, params["readout"], x)

    return model


def readout(layer, params, x):
    cell = CELLS["leaky_integrator"]
    if layer is hypr_layer:
        return hj.unroll(cell, params, x)
    step = lambda state, x: cell.step(params["neuron"], state, x @ params["w_in"] + params["bias"])  # noqa: E731
    return jax.lax.scan(step, cell.rest(params["neuron"], x.shape[1:-1], x.dtype), x)[1]


@pytest.fixture
def images():
    return jax.random.normal(jax.random.key(3), (T, B, 6, 4, C), jnp.float64)


@pytest.fixture
def params():
    readout = hj.init_layer(jax.random.key(9), CELLS["leaky_integrator"], 4, 5, dtype=jnp.float64)
    first, second = make_layer(7, CELLS["lif"], C, 3, (3, 3)), make_layer(8, CELLS["alif"], 3, 4, (2, 2))
    return {"first": first, "second": second, "readout": readout}


@pytest.mark.parametrize("pool", [jnp.sum, jnp.mean, jnp.max], ids=["sum", "mean", "max"])
def test_a_network_in_one_segment_is_bptt_through_convolutions(images, params, pool):
    loss = lambda layer: lambda p, x: jnp.square(network(layer, pool)(p, x) - 0.3).mean()  # noqa: E731
    expected = jax.jit(jax.grad(loss(conv_layer)))(params, images)
    assert all(jnp.abs(leaf).max() > 1e-9 for leaf in jax.tree.leaves(expected))
    assert_close(jax.jit(jax.grad(loss(hypr_layer)))(params, images), expected, 1e-12)
    assert_close(jax.jit(hj.hypr_grad(loss(hypr_layer), segment_length=T))(params, images), expected, 1e-12)
    last = lambda model: lambda p: jnp.square(model(p, images)[-1]).mean()  # noqa: E731
    actual = jax.jit(jax.grad(last(hj.hypr(network(hypr_layer, pool), segment_length=T))))(params)
    assert_close(actual, jax.jit(jax.grad(last(network(conv_layer, pool))))(params), 1e-12)


def test_a_network_keeps_its_value_and_the_gradient_of_its_top_in_segments(images, params):
    loss = lambda layer: lambda p, x: jnp.square(network(layer, jnp.sum)(p, x) - 0.3).mean()  # noqa: E731
    expected_loss, expected = jax.jit(jax.value_and_grad(loss(conv_layer)))(params, images)
    for segment_length in (1, 4):
        value, actual = hj.hypr_value_and_grad(loss(hypr_layer), segment_length=segment_length)(params, images)
        assert jnp.allclose(value, expected_loss, rtol=1e-12)
        assert_close(actual["readout"], expected["readout"], 1e-12)
    exact = lambda p: jnp.square(hj.bptt(network(hypr_layer, jnp.sum), segment_length=4)(p, images) - 0.3).mean()  # noqa: E731
    assert_close(jax.jit(jax.grad(exact))(params), expected, 1e-12)


def test_a_network_runs_step_by_step(images, params):
    net = hj.stream(network(hypr_layer, jnp.sum))
    carry, outputs = net.init(params, images), []
    for x in images:
        output, carry = net.apply(params, carry, x[None])
        outputs.append(output)
    assert_close(jnp.concatenate(outputs), network(conv_layer, jnp.sum)(params, images), 1e-12)


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [hj.hypr, hj.bptt])
@pytest.mark.parametrize(
    ("mix", "operation"),
    [
        (lambda x: hj.patches(jnp.moveaxis(x, 0, -2), 3), "pad pads or cuts time steps"),
        (lambda x: hj.patches(jnp.moveaxis(x, 0, -3), (3, 1), padding="VALID"), "slice picks time steps"),
        (lambda x: hj.patches(jnp.moveaxis(x, 0, -3), 1, stride=2), "slice picks time steps"),
        (lambda x: hj.patches(x, 3, stride=2)[::-1], "rev reverses time steps"),
        (lambda x: hj.patches(x, 3)[1:], "slice picks time steps"),
    ],
    ids=["window across", "window down", "stride", "patches reversed", "patches shifted"],
)
def test_time_is_followed_through_patches(params, mix, operation, wrap):
    """What mixes it is refused, and nothing else: the checks are on in all other tests."""

    def model(params, x):
        return hypr_layer(CELLS["lif"], params["first"], x + mix(x).mean(), ((3, 3), 1, "SAME"))

    with pytest.raises(ValueError, match=f"what enters unroll is not the same for every segment length: {operation}"):
        jax.eval_shape(wrap(model, segment_length=4), params, jnp.ones((8, B, 6, 4, C)))
