"""On a mesh of devices everything is as on one: gradients, streams, resets; and only spikes and errors travel."""

import contextlib
import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from networks import assert_close, make_data, make_loss, make_stack

import hyprjax as hj
from benchmarks.scaling import collectives

KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
explicit_and_auto = pytest.mark.parametrize("kind", KINDS)


def make_mesh(shape, kind, names=("batch", "neurons")):
    return jax.make_mesh(shape, names, axis_types=(KINDS[kind],) * len(names))


def shard(mesh, params, xs):
    of_params, _ = hj.shardings(mesh, params)
    return jax.device_put(params, of_params), jax.device_put(xs, NamedSharding(mesh, PartitionSpec(None, "batch")))


@functools.cache
def one_device(credit):
    """Gradient function, parameters, data and gradient on one device."""
    cells, params = make_stack(["brf", "alif", "leaky_integrator"], 3, [16, 8, 2])
    xs = make_data(14, (8,), 3, 2, resets=True)
    gradient = jax.jit(hj.hypr_grad(make_loss(cells), segment_length=4, recurrent_credit=credit))
    return gradient, params, xs, gradient(params, xs)


@pytest.mark.parametrize(
    ("shape", "kind", "credit", "ambient"),
    [
        ((8, 1), "auto", "none", False),
        ((8, 1), "explicit", "none", True),
        ((1, 8), "auto", "none", True),
        ((1, 8), "explicit", "none", False),
        ((2, 4), "auto", "none", False),
        ((2, 4), "explicit", "none", True),
        ((2, 4), "auto", "segment", True),
        ((2, 4), "explicit", "segment", False),
    ],
)
def test_gradients_are_those_of_one_device(shape, kind, credit, ambient):
    gradient, params, xs, expected = one_device(credit)
    mesh = make_mesh(shape, kind)
    with jax.set_mesh(mesh) if ambient else contextlib.nullcontext():
        sharded = gradient(*shard(mesh, params, xs))
    assert_close(jax.device_get(sharded), jax.device_get(expected))
    wanted = PartitionSpec(None, "neurons") if shape[1] > 1 else PartitionSpec(None, None)
    assert sharded[0]["w_rec"].sharding.is_equivalent_to(NamedSharding(mesh, wanted), 2)


@pytest.mark.parametrize("wrap", [hj.hypr, hj.bptt])
@explicit_and_auto
def test_wrapped_models_have_the_gradients_of_one_device(kind, wrap):
    cells, params = make_stack(["brf", "leaky_integrator"], 3, [8, 2])
    xs = make_data(14, (8,), 3, 2, resets=True)

    def model(params, xs):
        spikes = hj.unroll(cells[0], params[0], xs["inputs"], resets=xs["resets"])
        return jax.vmap(lambda z: hj.unroll(cells[1], params[1], z), 1, 1)(spikes)

    wrapped = wrap(model, segment_length=4)
    gradient = jax.jit(jax.grad(lambda params, xs: jnp.sin(wrapped(params, xs).mean(0)).sum()))
    mesh = make_mesh((2, 4), kind)
    with jax.set_mesh(mesh):
        sharded = gradient(*shard(mesh, params, xs))
    assert_close(jax.device_get(sharded), jax.device_get(gradient(params, xs)))


@pytest.mark.parametrize("name", ["lif", "filtered", "custom"])
def test_other_cells_and_the_associative_back_end(name):
    cells, params = make_stack([name, "leaky_integrator"], 3, [8, 2], bias=name != "lif")
    xs, loss_fn = make_data(12, (4,), 3, 2), make_loss(cells)
    gradient = jax.jit(hj.hypr_grad(loss_fn, segment_length=6, scan="associative"))
    sharded = gradient(*shard(make_mesh((2, 4), "explicit"), params, xs))
    assert_close(jax.device_get(sharded), jax.device_get(gradient(params, xs)))


@explicit_and_auto
def test_bptt_two_batch_axes_and_other_names_for_the_mesh(kind):
    cells, params = make_stack(["se_adlif", "leaky_integrator"], 3, [8, 2])
    xs, loss_fn = make_data(10, (4, 3), 3, 2), make_loss(cells)
    mesh = make_mesh((2, 4), kind, ("data", "model"))
    of_params, _ = hj.shardings(mesh, params, batch="data", neurons="model")
    sharded = jax.device_put(params, of_params), jax.device_put(xs, NamedSharding(mesh, PartitionSpec(None, "data")))
    for gradient in (jax.jit(jax.grad(loss_fn)), jax.jit(hj.hypr_grad(loss_fn, segment_length=5))):
        with jax.set_mesh(mesh):  # without it, jax.grad itself may refuse an explicit mesh
            there = gradient(*sharded)
        assert_close(jax.device_get(there), jax.device_get(gradient(params, xs)))


@explicit_and_auto
@pytest.mark.parametrize("credit", ["none", "segment", "exact"])
def test_a_scan_whose_carry_is_placed_by_the_model(kind, credit):
    cell, keys = hj.lif(), jax.random.split(jax.random.key(0), 3)
    params = {"up": hj.init_layer(keys[0], cell, 3 + 4, 8), "down": hj.init_layer(keys[1], cell, 8, 4)}
    xs, mesh = 3 * jax.random.normal(keys[2], (12, 4, 3)), make_mesh((2, 4), kind)

    def loss_fn(params, xs):
        def body(feedback, x):
            z = hj.step(cell, params["up"], jnp.concatenate([x, feedback], axis=-1))
            return hj.step(cell, params["down"], z), (z**2).mean()

        here = jax.typeof(xs).sharding
        start = jnp.zeros((4, 4), out_sharding=NamedSharding(here.mesh, PartitionSpec(*here.spec[1:])))
        return hj.scan(body, start, xs)[1].mean()

    if credit == "exact":
        gradient = jax.jit(jax.grad(loss_fn))
    else:
        gradient = jax.jit(hj.hypr_grad(loss_fn, segment_length=4, recurrent_credit=credit))
    with jax.set_mesh(mesh):
        sharded = gradient(*shard(mesh, params, xs))
    assert_close(jax.device_get(sharded), jax.device_get(gradient(params, xs)))
    assert jnp.abs(sharded["up"]["w_in"]).max() > 0


@explicit_and_auto
def test_a_stream_stays_where_it_was_put(kind):
    cells, params = make_stack(["brf", "leaky_integrator"], 3, [8, 2])
    xs, loss_fn = make_data(12, (8,), 3, 2, resets=True), make_loss(cells)
    learner, mesh = hj.hypr_stream(loss_fn), make_mesh((2, 4), kind)
    carry = learner.init(params, xs)
    of_params, of_carry = hj.shardings(mesh, params, carry)
    state, expected = (*jax.device_put((params, carry), (of_params, of_carry)),), (params, carry)
    for start in (0, 6):
        part = {name: x[start : start + 6] for name, x in xs.items()}
        (_, expected_grads), after = jax.jit(learner.value_and_grad)(*expected, part)
        sharded = jax.device_put(part, NamedSharding(mesh, PartitionSpec(None, "batch")))
        (_, grads), sharded_after = jax.jit(learner.value_and_grad)(*state, sharded)
        assert_close(jax.device_get(grads), jax.device_get(expected_grads))
        expected, state = (params, after), (state[0], sharded_after)
    same = jax.tree.map(lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim), state[1], of_carry)
    assert all(jax.tree.leaves(same))


# --- under jax.shard_map --------------------------------------------------------------------------

BY_BATCH = PartitionSpec(None, "batch")


def mapped(fn, in_specs, out_specs, shape=(4,), names=("batch",), **options):
    """`fn` under `jax.shard_map` with its default checks, compiled."""
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))
    return jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **options))


def problem(*names):
    """A stack with a rest state that is trained, data, and a loss that is the sum over all sequences."""
    cells, params = make_stack(names, 3, [4, 2][-len(names) :])
    return cells, params, make_data(8, (4,), 3, 2, resets=True), make_loss(cells)


@pytest.mark.parametrize("options", [{}, {"recurrent_credit": "segment"}, {"scan": "associative"}], ids=str)
def test_gradients_under_shard_map(options):
    _, params, xs, loss_fn = problem("custom")
    over_devices = lambda params, xs: jax.lax.psum(loss_fn(params, xs), "batch")  # noqa: E731
    summed, plain = (
        hj.hypr_value_and_grad(fn, segment_length=4, reduction="sum", **options) for fn in (over_devices, loss_fn)
    )
    assert_close(mapped(summed, (PartitionSpec(), BY_BATCH), PartitionSpec())(params, xs), plain(params, xs))


def test_a_stream_that_learns_under_shard_map():
    """Gradients are sums over devices although each has a loss of its own."""
    _, params, xs, loss_fn = problem("custom")
    learner = hj.hypr_stream(loss_fn)

    def learn(params, xs):
        carry, grads = learner.init(params, xs), []
        for start in (0, 4):
            segment = {name: x[start : start + 4] for name, x in xs.items()}
            (_, of_segment), carry = learner.value_and_grad(params, carry, segment)
            grads.append(of_segment)
        return grads, carry

    specs = (PartitionSpec(), BY_BATCH), (PartitionSpec(), PartitionSpec("batch"))
    assert_close(mapped(learn, *specs)(params, xs), jax.jit(learn)(params, xs))


@pytest.mark.parametrize("wrap", [lambda model: model, hj.bptt, hj.hypr])
def test_models_under_shard_map(wrap):
    cells, params, xs, _ = problem("custom", "leaky_integrator")

    def model(params, xs):
        spikes = hj.unroll(cells[0], params[0], xs["inputs"], resets=xs["resets"])
        return jax.jit(jax.vmap(lambda z: hj.unroll(cells[1], params[1], z), 1, 1))(spikes)

    def loss(params, inputs, xs):
        outputs = wrap(model)(params, xs | {"inputs": inputs})
        return (jnp.sin(outputs) * xs["weights"]).sum(), outputs

    gradient = jax.grad(loss, (0, 1), has_aux=True)
    specs = (PartitionSpec(), BY_BATCH, BY_BATCH), ((PartitionSpec(), BY_BATCH), BY_BATCH)
    inputs = xs.pop("inputs")
    assert_close(mapped(gradient, *specs)(params, inputs, xs), jax.jit(gradient)(params, inputs, xs))


def test_a_stream_under_shard_map_with_the_same_input_on_every_device():
    cells, params, xs, _ = problem("custom")
    net = hj.stream(lambda params, x: 2 * hj.unroll(cells[0], params[0], x))
    _, carry = net.apply(params, net.init(params, xs["inputs"]), xs["inputs"])
    silence = lambda params, carry: net.apply(params, carry, jnp.zeros((3, len(carry[0].output), 3)))  # noqa: E731
    specs = (PartitionSpec(), PartitionSpec("batch")), (BY_BATCH, PartitionSpec("batch"))
    assert_close(mapped(silence, *specs)(params, carry), silence(params, carry))


def test_members_of_an_ensemble_on_devices_of_their_own():
    _, params, xs, loss_fn = problem("custom")
    many = jax.tree.map(lambda p: jnp.stack([p, 1.1 * p]), params)
    gradient = hj.hypr_grad(loss_fn, segment_length=8)
    one = lambda params, xs: jax.tree.map(lambda g: g[None], gradient(jax.tree.map(lambda p: p[0], params), xs))  # noqa: E731
    specs = (PartitionSpec("member"), BY_BATCH), PartitionSpec("member")
    sharded = mapped(one, *specs, (2, 2), ("batch", "member"))(many, xs)
    assert_close(sharded, jax.jit(jax.vmap(gradient, (0, None)))(many, xs))


def test_shard_map_over_the_batch_alone_on_a_mesh_with_neurons():
    _, params, xs, loss_fn = problem("custom")
    mesh = make_mesh((2, 4), "auto")
    gradient = hj.hypr_grad(loss_fn, segment_length=8)
    specs = (PartitionSpec(), BY_BATCH), PartitionSpec()
    with jax.set_mesh(mesh):
        sharded = mapped(gradient, *specs, (2, 4), ("batch", "neurons"), axis_names={"batch"})(*shard(mesh, params, xs))
    assert_close(jax.device_get(sharded), jax.device_get(gradient(params, xs)))


def test_a_cell_of_constants_under_shard_map():
    """Plain zeros at rest, a plain constant as the next state, and a parameter without effect."""

    def step(neuron, state, current):
        v = neuron["decay"] * state[0] + current + state[1]
        return (v, jnp.ones(v.shape)), jnp.tanh(v)

    rest = lambda neuron, batch_shape, dtype: (jnp.zeros((*batch_shape, 2), dtype),) * 2  # noqa: E731
    cell = hj.Cell(lambda key, n: {"decay": jnp.full(n, 0.5), "idle": jnp.ones(n)}, rest, step)
    params = [hj.init_layer(jax.random.key(0), cell, 3, 2, recurrent=True, dtype=jnp.float64)]
    xs, loss_fn = make_data(6, (4,), 3, 2, resets=True), make_loss([cell])
    gradient = hj.hypr_grad(loss_fn, segment_length=3, reduction="sum")
    assert_close(mapped(gradient, (PartitionSpec(), BY_BATCH), PartitionSpec())(params, xs), gradient(params, xs))


def test_a_mean_over_devices_is_followed_by_the_check():
    cells, params, xs, _ = problem("custom")
    loss = lambda params, xs: hj.unroll(cells[0], params[0], xs["inputs"]).mean(1).sum()  # noqa: E731
    over_devices = lambda params, xs: jax.lax.pmean(loss(params, xs), "batch")  # noqa: E731
    checked = [hj.hypr_value_and_grad(fn, segment_length=4, check=True) for fn in (over_devices, loss)]
    assert_close(mapped(checked[0], (PartitionSpec(), BY_BATCH), PartitionSpec())(params, xs), checked[1](params, xs))


def primitives(jaxpr, name, inside=False):
    """For each equation of this name whether it is in the body of a scan."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name.startswith(name):
            yield inside
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from primitives(inner, name, inside or eqn.primitive.name == "scan")


def test_the_gradient_of_a_plain_unroll_is_summed_over_devices_once_and_not_at_every_step():
    _, params, xs, loss_fn = problem("custom")
    gradient = mapped(jax.grad(loss_fn), (PartitionSpec(), BY_BATCH), PartitionSpec())
    sums = list(primitives(jax.make_jaxpr(gradient)(params, xs).jaxpr, "psum"))
    assert sums == [False] * len(jax.tree.leaves(params))


# --- what the compiled program does ---------------------------------------------------------------


@pytest.fixture
def optimised():
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


STEPS, LENGTH, BATCH, N = 100, 10, 16, 64


@functools.cache
def compiled(shape, kind):
    cells, params = make_stack(["brf", "alif", "leaky_integrator"], 4, [N, N, 3])
    xs, loss_fn = make_data(STEPS, (BATCH,), 4, 3), make_loss(cells)
    gradient = jax.jit(hj.hypr_grad(loss_fn, segment_length=LENGTH))
    return gradient.lower(*shard(make_mesh(shape, kind), params, xs)).compile()


@explicit_and_auto
def test_memory_per_device_falls_with_the_number_of_devices(optimised, kind):
    one, by_batch, by_neurons = (
        compiled(shape, kind).memory_analysis().temp_size_in_bytes for shape in [(1, 1), (8, 1), (1, 8)]
    )
    assert by_batch < 0.25 * one, (by_batch, one)
    assert by_neurons < 0.35 * one, (by_neurons, one)


@explicit_and_auto
def test_with_neurons_split_only_spikes_and_errors_travel(optimised, kind):
    found = [(what, shapes) for what, shapes, _ in collectives(compiled((1, 8), kind).as_text())]
    assert {what for what, _ in found} == {"all-gather", "all-reduce"}
    # One gather of a layer's spikes per step of the S-stage: two recurrent layers, in the loop and the last segment.
    in_step = [what for what, shapes in found if shapes == [(BATCH, N)]]
    assert in_step == ["all-gather"] * 4
    # Per segment, a layer's spikes and the errors for the layer below; the readout's weights, which are not split.
    travels = {shape for _, shapes in found for shape in shapes}
    assert travels <= {(BATCH, N), (LENGTH, BATCH, N), (N, 3)}, travels


@explicit_and_auto
def test_with_the_batch_split_only_gradients_travel(optimised, kind):
    found = [(what, shapes) for what, shapes, _ in collectives(compiled((8, 1), kind).as_text())]
    assert {what for what, _ in found} == {"all-reduce"}
    of_weights = {(4, N), (N, N), (N, 3), (3, 3), (3,), (N,), ()}
    gradients = of_weights | {(136, N), (72, N), (72, 3)}  # the last ones from the traces
    assert {shape for _, shapes in found for shape in shapes} <= gradients


def test_a_mesh_without_the_named_axes_is_refused():
    with pytest.raises(ValueError, match=r"axes \('x',\), but neither 'batch' nor 'neurons'"):
        hj.shardings(jax.make_mesh((8,), ("x",)), {"w": jnp.ones(8)})
