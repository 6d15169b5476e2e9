"""`scan`, `step` and `delay`: networks of any wiring, equal to `unroll` where they are the same, and to plain JAX."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import CELLS, assert_close, make_stack

import hyprjax as hj

T, B, M, N = 12, 2, 3, 4
RNG = np.random.default_rng(0)
XS, WEIGHTS, RESETS = RNG.normal(size=(T, B, M)), RNG.normal(size=(T, B, N)), RNG.random((T, B)) < 0.15
CELL = CELLS["custom"]


def loss_of(outputs, weights):
    return (jnp.sin(outputs) * weights + 0.1 * outputs**2).sum()


def loss_with(model):
    return lambda params, xs: loss_of(model(params, xs), xs["weights"])


DATA = {"inputs": XS, "weights": WEIGHTS, "resets": RESETS}


# --- a recurrent layer, as `unroll` has it and as a step function ---------------------------------


def joined(layer):
    """Recurrent weights as more input weights."""
    return {
        "w_in": jnp.concatenate([layer["w_in"], layer["w_rec"]]),
        "bias": layer["bias"],
        "neuron": layer["neuron"],
    }


def unrolled(layer, xs):
    w_in, w_rec = jnp.split(layer["w_in"], [M])
    return hj.unroll(CELL, {**layer, "w_in": w_in, "w_rec": w_rec}, xs["inputs"], resets=xs["resets"])


def stepped(layer, xs):
    def body(z, x):
        z = jnp.where(x["resets"][..., None], 0, z)
        z = hj.step(CELL, layer, jnp.concatenate([x["inputs"], z], -1), reset=x["resets"])
        return z, z

    return hj.scan(body, jnp.zeros((*xs["inputs"].shape[1:-1], N)), xs)[1]


def stepped_with_w_rec(layer, xs):
    w_in, w_rec = jnp.split(layer["w_in"], [M])
    own = {**layer, "w_in": w_in, "w_rec": w_rec}
    body = lambda _, x: ((), hj.step(CELL, own, x["inputs"], reset=x["resets"]))  # noqa: E731
    return hj.scan(body, (), xs)[1]


@pytest.fixture(scope="module")
def layer():
    with jax.enable_x64(True):
        return joined(make_stack(["custom"], M, [N])[1][0])


OPTIONS = (
    {"segment_length": 5},
    {"segment_length": T, "recurrent_credit": "segment"},
    {"segment_length": 1, "scan": "sequential"},
    {"segment_length": 5, "recurrent_credit": "segment"},
)


@pytest.mark.parametrize(("model", "options"), [(stepped, OPTIONS), (stepped_with_w_rec, OPTIONS[:2])])
def test_a_recurrent_layer_is_that_of_unroll(model, options, layer):
    assert_close(model(layer, DATA), unrolled(layer, DATA), 1e-13)
    for one in options:
        gradient = lambda model, one=one: hj.hypr_grad(loss_with(model), reduction="sum", **one)(layer, DATA)  # noqa: E731
        assert_close(gradient(model), gradient(unrolled), 1e-12)
    of = lambda model: jax.grad(lambda p: loss_of(model(p, DATA), WEIGHTS))(layer)  # noqa: E731
    exact = of(unrolled)
    assert_close(of(model), exact, 1e-12)
    assert_close(of(hj.bptt(model, segment_length=5)), exact, 1e-12)
    assert_close(of(hj.hypr(model, segment_length=5)), of(hj.hypr(unrolled, segment_length=5)), 1e-12)


def test_a_layer_of_a_stream_learns_the_same(layer):
    learners = [hj.hypr_stream(loss_with(model)) for model in (stepped, unrolled)]
    carries = [learner.init(layer, DATA) for learner in learners]
    for start in range(0, T, 4):
        segment = jax.tree.map(lambda x, s=start: x[s : s + 4], DATA)
        grads = []
        for i, learner in enumerate(learners):
            (_, own), carries[i] = learner.value_and_grad(layer, carries[i], segment)
            grads.append(own)
        assert_close(*grads, 1e-12)
    net, parts = hj.stream(stepped), []
    carry = net.init(layer, DATA)
    for start, end in ((0, 1), (1, 6), (6, T)):
        out, carry = net.apply(layer, carry, jax.tree.map(lambda x, s=start, e=end: x[s:e], DATA))
        parts.append(out)
    assert_close(jnp.concatenate(parts), unrolled(layer, DATA), 1e-13)


# --- two populations with feedback ----------------------------------------------------------------

EXC, INH, READ = hj.alif(tau_a=(5.0, 30.0)), CELLS["brf"], hj.leaky_integrator(4.0)


def network(cut=False, trained_start=False):
    """Excitation and inhibition round a loop, a slow trace of both, a readout of what is filtered; a count of steps."""
    fixed = (lambda x: x) if trained_start else jax.lax.stop_gradient
    stop = jax.lax.stop_gradient if cut else lambda x: x

    def model(params, xs):
        def body(carry, x):
            back, mean, count = carry
            exc = hj.step(EXC, params["exc"], jnp.concatenate([x, stop(back), stop(mean)], -1))
            gate = jax.nn.sigmoid(exc @ params["gate"] + 0.1 * count)
            inh = jax.jit(lambda x: hj.step(INH, params["inh"], x))(jnp.concatenate([gate * exc, x], -1))
            mean = 0.8 * stop(mean) + 0.2 * inh * params["scale"]
            return (inh, mean, count + 1), jnp.concatenate([exc * inh, inh * mean], -1)

        zeros = jnp.zeros((*xs.shape[1:-1], N))
        start = zeros, fixed(params["start"]) + zeros, jnp.array(0)
        _, out = hj.scan(body, start, xs)
        return hj.unroll(READ, params["read"], out + hj.delay(out, [0, 1, 2, 3, 0, 1, 20, 3]))

    return model


@pytest.fixture(scope="module")
def params():
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 4)
        make = lambda key, cell, m: hj.init_layer(key, cell, m, N, dtype=jnp.float64)  # noqa: E731
        return {
            "exc": make(keys[0], EXC, M + 2 * N),
            "inh": make(keys[1], INH, N + M),
            "read": make(keys[2], READ, 2 * N),
            "gate": jax.random.normal(keys[3], (N, N), jnp.float64),
            "scale": jnp.full(N, 0.7, jnp.float64),
            "start": jnp.full(N, 0.1, jnp.float64),
        }


def gradient_of(model, params, xs=XS, **options):
    return jax.grad(lambda p: loss_of(model(p, xs), WEIGHTS))(params)


def test_feedback_between_two_populations(params):
    model, trained = network(), network(trained_start=True)
    outputs, exact = model(params, XS), gradient_of(trained, params)
    for length in (T, 5, 1):
        assert_close(hj.hypr(model, segment_length=length)(params, XS), outputs, 1e-13)
        assert_close(gradient_of(hj.bptt(trained, segment_length=length), params), exact, 1e-12)
    assert_close(gradient_of(hj.hypr(model, recurrent_credit="segment"), params), gradient_of(model, params), 1e-12)
    assert_close(gradient_of(hj.hypr(model), params), gradient_of(network(cut=True), params), 1e-12)


def test_jit_vmap_and_ensembles(params):
    model = network()
    wrapped = hj.hypr(model, segment_length=5)
    expected = gradient_of(wrapped, params)
    batched = lambda p, xs: jax.vmap(lambda x: model(p, x), 1, 1)(xs)  # noqa: E731
    of_batch = jax.jit(jax.grad(lambda p: loss_of(hj.hypr(batched, segment_length=5)(p, XS), WEIGHTS)))(params)
    assert_close(of_batch, expected, 1e-12)
    around = lambda p, xs: jax.vmap(lambda x: wrapped(p, x), 1, 1)(xs)  # noqa: E731
    assert_close(gradient_of(around, params), expected, 1e-12)
    scaled = [jax.tree.map(lambda leaf, s=s: s * leaf, params) for s in (1.0, 1.1)]
    members = jax.tree.map(lambda *leaves: jnp.stack(leaves), *scaled)
    ensemble = lambda p, xs: jax.vmap(model, (0, None), 1)(p, xs).sum(1)  # noqa: E731
    both = lambda p, xs: model(jax.tree.map(lambda x: x[0], p), xs) + model(jax.tree.map(lambda x: x[1], p), xs)  # noqa: E731
    for options in ({"recurrent_credit": "none"}, {"recurrent_credit": "segment"}):
        of = lambda fn, o=options: gradient_of(hj.hypr(fn, segment_length=5, **o), members)  # noqa: E731
        assert_close(of(ensemble), of(both), 1e-12)


def test_checkpoint_around_a_step_and_random_keys_in_the_carry(layer):
    def model(layer, xs, wrap):
        def body(key, x):
            key, own = jax.random.split(key)
            noisy = jnp.concatenate([x, 0.3 * jax.random.normal(own, (B, N))], -1)
            return key, wrap(lambda x: hj.step(CELL, layer, x))(noisy)

        return hj.scan(body, jax.random.key(3), xs)[1]

    plain = lambda layer, xs: model(layer, xs, lambda f: f)  # noqa: E731
    remade = lambda layer, xs: model(layer, xs, jax.checkpoint)  # noqa: E731
    exact = gradient_of(plain, layer)
    assert_close(gradient_of(hj.hypr(plain, segment_length=5), layer), exact, 1e-12)  # nothing goes round
    assert_close(gradient_of(hj.hypr(remade, segment_length=5), layer), exact, 1e-12)
    assert_close(gradient_of(hj.bptt(remade, segment_length=5), layer), exact, 1e-12)


# --- delay ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 4, 30, (0, 7, 2)])
def test_delay(steps):
    expected = np.zeros_like(XS)
    for channel, lag in enumerate(np.broadcast_to(steps, M)):
        expected[lag:, :, channel] = XS[: max(T - lag, 0), :, channel]
    assert np.array_equal(hj.delay(XS, steps), expected)
    net, parts = hj.stream(lambda _, xs: hj.delay(xs, steps)), []
    carry = net.init((), XS)
    for start in range(0, T, 4):
        out, carry = net.apply((), carry, XS[start : start + 4])
        parts.append(out)
    assert np.array_equal(np.concatenate(parts), expected)


# --- what is refused ------------------------------------------------------------------------------


def refuses(words, kind=ValueError):
    return pytest.raises(kind, match=words)


def test_what_cannot_be_is_refused(layer):
    start = jnp.zeros((B, N))
    with refuses("step was called outside of the body of hyprjax.scan"):
        hj.step(CELL, layer, jnp.ones((B, M + N)))
    with refuses("the parameters of a layer in the body of hyprjax.scan depend on its carry or on xs"):
        hj.scan(lambda z, x: (z, hj.step(CELL, {**layer, "bias": z[0]}, jnp.concatenate([x, z], -1))), start, XS)
    with refuses("unroll was called in the body of hyprjax.scan"):
        hj.scan(lambda z, x: (z, hj.unroll(CELL, layer, jnp.concatenate([x, z], -1)[None])), start, XS)
    with refuses("step was called under scan"):
        layers = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), layer)
        inner = lambda z, one: (hj.step(CELL, one, jnp.concatenate([z, z[:, :M]], -1)), None)  # noqa: E731
        hj.scan(lambda z, x: (jax.lax.scan(inner, z, layers)[0], None), start, XS)
    with refuses(r"f returns carry as .*\[2, 3\], but it must stay what it is in init, .*\[2, 4\]"):
        hj.scan(lambda z, x: (x, x), start, XS)
    with refuses("the carry that f returns has the structure"):
        hj.scan(lambda z, x: ((z, z), x), start, XS)
    with refuses(r"xs must be arrays \[T, ...\] with the same number of steps"):
        hj.scan(lambda z, x: (z, x), start, {"a": XS, "b": XS[:-1]})
    with refuses(r'params\["w_in"\] has 7 input rows but inputs have 3 features'):
        hj.scan(lambda z, x: (z, hj.step(CELL, layer, x)), start, XS)
    with refuses("delay: steps must be at least 0"):
        hj.delay(XS, -1)
    with refuses("delay: steps must be an int", TypeError):
        hj.delay(XS, 1.5)
    with refuses(r"delay: x has no time steps, its shape is \(0, 3\)"):
        hj.delay(jnp.zeros((0, 3)), 1)
    with refuses(r"step: reset has shape \(7,\), but it must be \[\*batch\]"):
        reset = jnp.zeros(7, bool)
        hj.scan(lambda z, x: (hj.step(CELL, layer, jnp.concatenate([x, z], -1), reset=reset), x), start, XS)
    with refuses("delay: steps is traced", TypeError):
        jax.jit(lambda n: hj.delay(XS, n))(2)


def test_what_depends_on_the_segment_is_refused():
    smooth = lambda mean, x: (0.9 * mean + 0.1 * x, mean)  # noqa: E731
    with refuses("the last carry of hyprjax.scan is that of a segment"):
        hj.hypr(lambda _, xs: hj.scan(smooth, jnp.zeros((B, M)), xs)[0] + xs, segment_length=5)((), XS)
    with refuses("the init or the body of hyprjax.scan uses an array with a time axis as a whole"):
        hj.hypr(lambda _, xs: hj.scan(lambda c, x: (c, x + xs.mean(0)), 0.0, xs)[1], segment_length=5)((), XS)
    with refuses("what enters hyprjax.delay is not the same for every segment length: cumsum"):
        hj.hypr(lambda _, xs: hj.delay(jnp.cumsum(xs, 0), 2), segment_length=5)((), XS)


def test_a_trained_start_is_refused_where_the_gradient_misses_it(layer):
    params = {"layer": layer, "start": jnp.full(N, 0.5)}

    def model(params, xs, of_start=lambda start: start):
        def body(z, x):
            z = hj.step(CELL, params["layer"], jnp.concatenate([x, z], -1)) + 0.5 * z
            return z, z

        return hj.scan(body, jax.jit(lambda start: jnp.tile(start, (B, 1)))(of_start(params["start"])), xs)[1]

    with refuses("hypr: the init of hyprjax.scan depends on what is differentiated"):
        hj.hypr(model, segment_length=5)(params, XS)
    with refuses("hypr_grad: the init of hyprjax.scan depends on what is differentiated"):
        hj.hypr_grad(lambda p, xs: model(p, xs).mean())(params, XS)
    learner = hj.hypr_stream(lambda p, xs: model(p, xs).mean())
    with refuses("hypr_stream: the init of hyprjax.scan depends on what is differentiated"):
        learner.value_and_grad(params, learner.init(params, XS), XS)
    fixed = partial(model, of_start=jax.lax.stop_gradient)
    assert_close(hj.hypr(fixed, segment_length=5)(params, XS), model(params, XS))
    grads = [jax.grad(lambda p, f=f: f(p, XS).sum())(params) for f in (model, hj.bptt(model, segment_length=5))]
    assert jnp.abs(grads[1]["start"]).min() > 0
    assert_close(*grads)


def test_a_start_that_is_no_parameter_is_exact_with_bptt_and_refused_by_hypr(layer):
    def model(params, xs, start):
        def body(z, x):
            z = hj.step(CELL, params, jnp.concatenate([x, z], -1)) + 0.5 * z
            return z, z

        return hj.scan(body, start, xs)[1]

    start = jnp.full((B, N), 0.5)
    of_start = lambda f: jax.grad(lambda s: jnp.square(f(layer, XS, s)).sum())(start)  # noqa: E731
    assert_close(of_start(model), of_start(hj.bptt(model, segment_length=5)))
    closed = lambda wrap: lambda p, xs, s: wrap(lambda p, xs: model(p, xs, s))(p, xs)  # noqa: E731
    assert_close(of_start(model), of_start(closed(hj.bptt)))
    for wrapped in (hj.hypr(model), closed(hj.hypr)):
        with refuses("hypr: the init of hyprjax.scan depends on what is differentiated"):
            of_start(wrapped)
        assert_close(wrapped(layer, XS, start), model(layer, XS, start))
    # Made from the data themselves: one segment, as it picks a step.
    from_data = lambda p, xs: model(p, xs, jnp.tile(xs[0, :, :1], (1, N)))  # noqa: E731
    of_data = lambda f: jax.grad(lambda xs: jnp.square(f(layer, xs)).sum())(XS)  # noqa: E731
    assert_close(of_data(from_data), of_data(hj.bptt(from_data, segment_length=len(XS))))
    assert_close(of_data(from_data), of_data(hj.bptt(from_data, segment_length=5, check=False)))


def test_a_trained_start_in_a_scan_over_layers_is_refused(layer):
    params = {"layers": jax.tree.map(lambda a: jnp.stack([a, a]), layer), "starts": jnp.full((2, B, N), 0.5)}

    def model(params, xs):
        def of_layer(signal, own):
            def body(z, x):
                z = hj.step(CELL, own["layers"], jnp.concatenate([x[..., :M], z], -1)) + 0.5 * z
                return z, z

            return hj.scan(body, own["starts"], signal)[1], None

        return jax.lax.scan(of_layer, jnp.tile(xs[..., :1], (1, 1, N)), params)[0]

    with refuses("hypr: the init of hyprjax.scan depends on what is differentiated"):
        hj.hypr(model, segment_length=5)(params, XS)


def test_the_last_carry_has_the_credit_of_its_step(layer):
    def loss(of, params, xs):
        def body(z, x):
            z = hj.step(CELL, params, jnp.concatenate([x, z], -1)) + 0.5 * z
            return z, z

        last, zs = hj.scan(body, jnp.zeros((B, N)), xs)
        return jnp.square(last if of == "carry" else zs[-1]).sum()

    for credit in ("none", "segment"):
        grad = lambda of, c=credit: hj.hypr_grad(partial(loss, of), recurrent_credit=c)(layer, XS)  # noqa: E731
        assert jnp.abs(grad("carry")["w_in"]).max() > 0
        assert_close(grad("carry"), grad("y"))


def test_an_output_of_a_scan_may_be_a_constant():
    smooth = lambda mean, x: (0.9 * mean + 0.1 * x, (mean, 1.0))  # noqa: E731
    model = lambda scale, xs: hj.scan(smooth, jnp.zeros((B, M)), scale * xs)[1]  # noqa: E731
    for wrap in (hj.hypr, hj.bptt):
        value, grad = jax.value_and_grad(lambda scale, f: sum(map(jnp.sum, f(scale, XS))))(
            2.0, wrap(model, segment_length=5)
        )
        assert jnp.allclose(value, sum(map(jnp.sum, model(2.0, XS)))), value
        assert jnp.isfinite(grad)


def test_on_a_mesh(params):
    """The batch over devices: the gradients of one device."""
    model = network()
    expected = gradient_of(hj.hypr(model, segment_length=5), params)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    of_batch = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "batch"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    xs, weights, at = jax.device_put(XS, of_batch), jax.device_put(WEIGHTS, of_batch), jax.device_put(params, whole)
    loss = lambda p, xs: loss_of(hj.hypr(model, segment_length=5)(p, xs), weights)  # noqa: E731
    assert_close(jax.device_get(jax.jit(jax.grad(loss))(at, xs)), expected, 1e-12)
    carry = hj.hypr_stream(lambda p, xs: model(p, xs).mean()).init(params, XS)
    _, of_carry = hj.shardings(mesh, params, carry)
    assert jax.tree.structure(of_carry) == jax.tree.structure(carry)
    assert of_carry[1].traces.synapses[0].spec == jax.sharding.PartitionSpec("batch", None, None)
