"""`hj.check` and `hj.check_cell`: the numbers of a report against independent ones, and what each mistake is told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import CELLS
from test_programs import NESTED, made, summed

import hyprjax as hj

T, B, M, N, K = 40, 3, 4, 6, 2
HIDDEN, READOUT = hj.lif(), hj.leaky_integrator(tau=5.0)


def network(gain=1.0, bias=0.0, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "hidden": hj.init_layer(keys[0], HIDDEN, M, N, recurrent=True, dtype=jnp.float64),
        "readout": hj.init_layer(keys[1], READOUT, N, K, dtype=jnp.float64),
    }
    params["hidden"]["w_in"] *= gain
    params["hidden"]["bias"] += bias
    return params, jax.random.normal(keys[2], (T, B, M), jnp.float64)


def model(params, xs):
    return hj.unroll(READOUT, params["readout"], hj.unroll(HIDDEN, params["hidden"], xs))


def cross_entropy(logits, labels):
    labels = jnp.broadcast_to(labels, logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def loss_fn(params, xs):
    return cross_entropy(model(params, xs["inputs"]), xs["labels"]).mean()


@pytest.fixture(scope="module")
def report():
    jax.config.update("jax_enable_x64", True)
    params, xs = network()
    data = {"inputs": xs, "labels": jnp.ones((T, B), int)}
    return hj.check(loss_fn, params, data, segment_length=9), params, data


def advice(report, *words):
    """The lines that have all these words."""
    return [line for line in report.advice if all(word in line for word in words)]


# --- numbers --------------------------------------------------------------------------------------


def test_values_are_those_of_hypr_value_and_grad(report):
    report, params, data = report
    assert list(report.values) == [6, 9, T]
    assert report.kind == "loss"
    for length in (6, 9):
        expected = hj.hypr_value_and_grad(loss_fn, segment_length=length)(params, data)[0]
        assert np.isclose(report.values[length], expected, rtol=1e-12)
    assert np.isclose(report.values[T], loss_fn(params, data), rtol=1e-12)
    assert max(report.differences.values()) < 1e-12


def test_rates_are_those_of_the_spikes(report):
    report, params, data = report
    spikes = np.asarray(hj.unroll(HIDDEN, params["hidden"], data["inputs"]))
    hidden, readout = report.layers
    assert 0.01 < spikes.mean() < 0.9
    assert np.isclose(hidden.rate, spikes.mean(), rtol=1e-6)
    assert hidden.silent == sum(not spikes[..., i].any() for i in range(N))
    assert hidden.saturated == sum(spikes[..., i].mean() >= 0.95 for i in range(N))
    assert (hidden.cell, hidden.shape, hidden.neurons) == ("lif", (T, B, N), N)
    assert (readout.cell, readout.shape, readout.neurons) == ("leaky_integrator", (T, B, K), K)
    assert readout.rate is readout.silent is readout.saturated is None
    assert [hidden.finite, readout.finite] == [True, True]


def test_memory_follows_the_formulas(report):
    hidden, readout = report[0].layers
    rows = lambda size: -(-size // 8) * 8  # noqa: E731
    assert hidden.traces == 8 * B * N * (rows(M + N + 1) + 1)  # one state variable, one neuron parameter
    assert readout.traces == 8 * B * K * (rows(N + 1) + 1)
    assert hidden.states == 8 * T * B * N
    assert readout.states == 8 * T * B * K


def test_cosines_are_those_of_the_gradients_of_the_first_three_segments(report):
    report, params, data = report
    assert report.prefix == 27
    start = jax.tree.map(lambda x: x[:27], data)
    exact = jax.grad(loss_fn)(params, start)
    seen = []
    for credit in ("none", "segment"):
        grads = hj.hypr_grad(loss_fn, segment_length=9, recurrent_credit=credit)(params, start)
        for path in (("hidden", "w_rec"), ("hidden", "w_in"), ("readout", "w_in"), ("hidden", "neuron", "tau")):
            a, b = grads, exact
            for name in path:
                a, b = a[name], b[name]
            a, b = np.ravel(a), np.ravel(b)
            seen.append(report.cosines["/".join(path)][credit])
            assert np.isclose(seen[-1], a @ b / np.sqrt((a @ a) * (b @ b)), rtol=1e-9)
    assert min(seen) < 0.999


def test_a_model_has_the_outputs_of_hypr_and_one_segment_with_segment_credit_is_exact():
    params, xs = network()
    report = hj.check(model, params, xs)
    assert (report.kind, report.values, report.prefix) == ("model", {}, T)
    assert list(report.differences) == [14, 20, T]
    assert max(report.differences.values()) == 0
    assert np.allclose([of["segment"] for of in report.cosines.values()], 1.0, atol=1e-12)
    assert report.cosines["hidden/w_rec"]["none"] < 0.999
    assert report.cosines["readout/w_in"]["none"] > 1 - 1e-12  # nothing above it


def test_arguments_auxiliary_results_and_a_sum(report):
    _, params, data = report

    def loss(params, xs, labels, *, scale):
        logits = model(params, xs)
        return scale * cross_entropy(logits, labels).sum(), {"logits": logits}

    args = {"labels": jnp.ones(B, int), "scale": 2.0}
    report = hj.check(loss, params, data["inputs"], has_aux=True, segment_length=15, **args)
    assert report.ok
    assert np.isclose(report.values[15], loss(params, data["inputs"], **args)[0], rtol=1e-12)


def test_data_with_its_batch_first(report):
    expected, params, data = report
    batch_first = {"inputs": data["inputs"].swapaxes(0, 1), "labels": jnp.ones(B, int)}
    axes = {"inputs": 1, "labels": None}

    def loss(params, xs):
        return cross_entropy(model(params, xs["inputs"].swapaxes(0, 1)), xs["labels"]).mean()

    found = hj.check(loss, params, batch_first, time_axis=axes, segment_length=9)
    assert np.allclose(list(found.values.values()), list(expected.values.values()), rtol=1e-12)
    assert found.layers == expected.layers
    assert np.isclose(found.cosines["hidden/w_in"]["none"], expected.cosines["hidden/w_in"]["none"], rtol=1e-9)
    transposed = lambda params, xs: model(params, xs.swapaxes(0, 1)).swapaxes(0, 1)  # noqa: E731
    found = hj.check(transposed, params, batch_first["inputs"], time_axis=1, segment_length=9, gradients=False)
    assert found.ok
    assert found.layers == expected.layers


STACKED = {"scan over layers": [2, 1], "ensemble": [2, 2, 2], "jit of vmap of scan": [2, 1]}
SAME = ["checkpointed layers", "vmap, batch first"]


@pytest.mark.parametrize("name", [*STACKED, *SAME])
def test_nested_programs(monkeypatch, name):
    """Outputs of every layer, stacked where the program stacks them, as plain calls have them."""
    nested, plain = NESTED[name]
    params, xs = made()
    outputs, unroll = [], hj.unroll
    with monkeypatch.context() as patch:
        patch.setattr(hj, "unroll", lambda *args, **options: outputs.append(unroll(*args, **options)) or outputs[-1])
        plain(params, xs)
    report = hj.check(summed(nested), params, xs, segment_length=5, gradients=False)
    assert not advice(report, "segment length")
    stacks = STACKED.get(name, [1, 1, 1])
    assert len(report.layers) == len(stacks)
    order = np.argsort([i % 3 for i in range(6)], kind="stable") if name == "ensemble" else range(len(outputs))
    outputs = iter([outputs[i] for i in order])
    for layer, stack in zip(report.layers, stacks, strict=True):
        own = np.stack([next(outputs) for _ in range(stack)])
        assert layer.shape == (own.shape if stack > 1 else own.shape[1:])
        assert layer.neurons == stack * own.shape[-1]
        if layer.cell == "brf":
            assert np.isclose(layer.rate, own.mean(), rtol=1e-6)
            assert layer.silent == (own.sum((1, 2)) == 0).sum()
    assert np.isclose(report.values[5], summed(plain)(params, xs), rtol=1e-11)


# --- advice ---------------------------------------------------------------------------------------


def test_nothing_to_change(report):
    report, *_ = report
    assert report.ok
    lines = str(report).splitlines()
    assert lines[0] == "a loss"
    assert lines[-1] == "- nothing to change"
    assert any(line.startswith("0       lif") for line in lines)


def test_a_silent_layer_and_not_the_one_above_it():
    params, xs = network(bias=-50.0)
    cells = [HIDDEN, HIDDEN, READOUT]
    layers = [params["hidden"], hj.init_layer(jax.random.key(5), HIDDEN, N, N, dtype=jnp.float64), params["readout"]]

    def deep(params, xs):
        for cell, layer in zip(cells, params, strict=True):
            xs = hj.unroll(cell, layer, xs)
        return xs

    report = hj.check(deep, layers, xs, gradients=False)
    assert [one.silent for one in report.layers] == [N, N, None]
    assert len(report.advice) == 1
    assert advice(report, "unroll 0 (lif): 6 of 6 neurons are silent", "hj.calibrate", "gain")


def test_a_saturated_layer():
    params, xs = network(bias=50.0)
    report = hj.check(model, params, xs, gradients=False)
    assert report.cosines == {}
    assert report.layers[0].saturated == N
    assert advice(report, "unroll 0 (lif): 6 of 6 neurons fire at (almost) every step")


@pytest.mark.parametrize("outside", [lambda logits: logits[-1], lambda logits: logits.mean(0)])
def test_a_loss_that_is_no_sum_over_time_steps(outside):
    params, xs = network()
    loss = lambda params, xs: jnp.square(outside(model(params, xs))).mean()  # noqa: E731
    report = hj.check(loss, params, xs, segment_length=10, gradients=False)
    assert report.differences[10] > 0.05
    assert np.isclose(report.values[T], loss(params, xs), rtol=1e-12)
    assert len(report.advice) == 1
    assert advice(report, "not the same for every segment length", "test_report.py", "hj.hypr(model)")


def test_what_tracing_cannot_follow_is_measured():
    params, xs = network()
    cumsum = lambda xs: jax.pure_callback(lambda x: np.cumsum(x, 0), xs, xs)  # noqa: E731
    report = hj.check(lambda params, xs: model(params, cumsum(xs)), params, xs, gradients=False)
    assert report.differences[20] > 0.05
    assert advice(report, "the model changes with the segment length", "hj.hypr(model)")


def test_a_loss_that_is_partly_a_mean():
    params, xs = network()
    loss = lambda params, xs: model(params, xs).mean() + jnp.square(model(params, xs)).sum()  # noqa: E731
    report = hj.check(loss, params, xs, segment_length=10, gradients=False)
    assert advice(report, "neither a sum nor a mean", "reduction")


def test_a_function_of_whole_sequences_only():
    params, xs = network()
    weights = jnp.linspace(0.0, 1.0, T)
    loss = lambda params, xs: (model(params, xs).sum((1, 2)) * weights).mean()  # noqa: E731
    report = hj.check(loss, params, xs, segment_length=10)
    assert list(report.values) == [T]
    assert (report.prefix, report.cosines) == (0, {})
    assert advice(report, "does not run in segments of 10 steps", "shapes")


def test_where_a_nan_comes_from():
    params, xs = network()
    report = hj.check(model, params, xs.at[3].set(jnp.nan), gradients=False)
    assert report.advice == ("not finite: xs",)
    broken = {**params, "readout": {**params["readout"], "w_in": params["readout"]["w_in"] * jnp.inf}}
    assert advice(hj.check(model, broken, xs, gradients=False), "params['readout']['w_in']")
    diverging = HIDDEN._replace(step=lambda neuron, s, current: ({"v": 1e30 * (s["v"] + current)}, s["v"]))
    two = lambda p, xs: hj.unroll(READOUT, p["readout"], hj.unroll(diverging, p["hidden"], xs))  # noqa: E731
    report = hj.check(two, params, xs, gradients=False)
    assert [one.finite for one in report.layers] == [False, False]
    assert advice(report, "not finite: outputs or state of unroll 0 (lif)", "hj.check_cell")
    report = hj.check(lambda params, xs: jnp.log(model(params, xs) * 0 - 1).mean(), params, xs, gradients=False)
    assert advice(report, "not finite: the loss")
    hidden = lambda params, xs: jnp.where(xs[..., :2] > 1e6, jnp.sqrt(model(params, xs) - 1e6), 1.0)  # noqa: E731
    assert advice(hj.check(hidden, params, xs), "not finite: the gradient of hidden/")


def test_a_gradient_far_from_the_exact_one():
    """A gain of the first neuron of a ring, and the spikes of the last."""
    layer = hj.init_layer(jax.random.key(0), HIDDEN, 1, N, recurrent=True, dtype=jnp.float64)
    layer |= {"w_in": jnp.zeros((1, N)).at[0, 0].set(0.8), "w_rec": 0.8 * jnp.roll(jnp.eye(N), 1, axis=1)}
    spikes = lambda gain, xs: hj.unroll(HIDDEN, {**layer, "w_in": gain * layer["w_in"]}, xs)  # noqa: E731
    xs = jax.random.bernoulli(jax.random.key(1), 0.5, (T, B, 1))
    report = hj.check(lambda gain, xs: spikes(gain, xs)[..., -1:].mean(), jnp.ones(()), xs)
    assert report.cosines == {"params": {"none": 0.0, "segment": pytest.approx(1.0)}}
    assert advice(report, "cosine 0.00 to the exact gradient on params", 'recurrent_credit="segment" has 1.00')


def test_errors():
    params, xs = network()
    with pytest.raises(TypeError, match="check looks at numbers; call it outside"):
        jax.jit(lambda params: hj.check(model, params, xs).values)(params)
    with pytest.raises(TypeError, match="pass has_aux=True"):
        hj.check(lambda params, xs: (model(params, xs).mean(), 1.0), params, xs)
    with pytest.raises(ValueError, match=r"the function given to check.*must call"):
        hj.check(lambda params, xs: xs.mean(), params, xs)
    with pytest.raises(ValueError, match=r"output.* of the function given to hypr has shape \(3, 2\)"):
        hj.check(lambda params, xs: model(params, xs).mean(0), params, xs)
    with pytest.raises(ValueError, match="segment_length must be a positive int, got 0"):
        hj.check(model, params, xs, segment_length=0)
    with pytest.raises(ValueError, match="reduction must be one of"):
        hj.check(model, params, xs, reduction="max")


# --- cells ----------------------------------------------------------------------------------------

MADE = {
    **CELLS,
    "cuba_lif": hj.cuba_lif(),
    "ef_adlif": hj.ef_adlif(),
    "rf": hj.rf(omega=(3.0, 5.0), b_offset=(1.0, 2.0)),
}


def failed(report):
    return {finding.name: finding.detail for finding in report.findings if finding.ok is False}


@pytest.mark.parametrize("name", MADE)
def test_every_cell_of_the_library_passes(name):
    report = hj.check_cell(MADE[name], n=3, steps=1000)
    assert all(finding.ok for finding in report.findings), report
    assert report.ok
    assert {"float32", "float64", "bfloat16"} <= {finding.name for finding in report.findings}


def changed(**functions):
    return hj.alif()._replace(**functions)


def with_step(change):
    """An ALIF neuron with something done to its next state and output."""
    step = hj.alif().step
    return changed(step=lambda neuron, state, current: change(*step(neuron, state, current)))


@jax.custom_jvp
def wrong_square(x):
    return x**2


wrong_square.defjvp(lambda x, dx: (x[0] ** 2, x[0] * dx[0]))

MISTAKES = {
    "lateral inhibition": ("neurons apart", with_step(lambda s, z: (s, z * (z.sum(-1, keepdims=True) < 2)))),
    "a neighbour": ("neurons apart", with_step(lambda s, z: ({**s, "v": s["v"] + jnp.roll(s["v"], 1, -1) / 9}, z))),
    "a batch statistic": ("batch apart", with_step(lambda s, z: ({**s, "v": s["v"] - s["v"].mean(0)}, z))),
    "random numbers": ("alike", with_step(lambda s, z: (s, z + jax.random.normal(jax.random.key(0), z.shape)))),
    "NumPy's random numbers": ("repeatable", with_step(lambda s, z: (s, z + np.random.default_rng().normal()))),
    "explosion": ("bounded", with_step(lambda s, z: ({**s, "v": 1.1 * s["v"]}, z))),
    "a wrong derivative": ("derivative", with_step(lambda s, z: ({**s, "v": jnp.tanh(wrong_square(s["v"]))}, z))),
    "no surrogate": ("gradient", with_step(lambda s, z: (s, jnp.round(jax.lax.stop_gradient(z))))),
    "a NaN in a derivative": (
        "gradient",
        with_step(lambda s, z: ({**s, "a": s["a"] + jnp.where(z > 0, 0.0, jnp.sqrt(0 * z))}, z)),
    ),
    "another dtype": ("float64", with_step(lambda s, z: (s, z.astype(jnp.float32)))),
    "rest without a batch": (
        "float32",
        changed(rest=lambda neuron, batch_shape, dtype: {k: jnp.zeros(len(neuron["tau"]), dtype) for k in "va"}),
    ),
    "rest of the batch": (
        "rest",
        changed(rest=lambda n, batch, dtype: {k: jnp.full((*batch, len(n["tau"])), len(batch), dtype) for k in "va"}),
    ),
    "rest at infinity": (
        "rest",
        changed(rest=lambda n, batch, dtype: {k: jnp.full((*batch, len(n["tau"])), jnp.inf, dtype) for k in "va"}),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_cell(name):
    where, cell = MISTAKES[name]
    report = hj.check_cell(cell, n=3, steps=1000)
    assert where in failed(report), report
    assert not report.ok
    assert "FAILED" in str(report)


def test_what_does_not_decide_is_a_note():
    """A surrogate inside of a loop; and constants in float32, which bfloat16 does not survive."""
    lif = hj.lif()
    scale = jnp.float32(0.9)

    def twice(neuron, state, current):
        again = lambda _, at: lif.step(neuron, at[0], current)  # noqa: E731
        state, z = jax.lax.fori_loop(0, 2, again, (state, jnp.zeros_like(current)))
        return {"v": (scale * jnp.ones(1, jnp.float32)) * state["v"]}, z

    report = hj.check_cell(lif._replace(step=twice), n=3, steps=500)
    assert {finding.name for finding in report.findings if finding.ok is None} == {"bfloat16", "derivative"}
    assert report.ok


def test_errors_of_check_cell():
    with pytest.raises(TypeError, match=r"cell must be a Cell, as hj\.lif"):
        hj.check_cell(hj.brf)
    with pytest.raises(ValueError, match="n must be 2 or more"):
        hj.check_cell(hj.brf(), n=1)
