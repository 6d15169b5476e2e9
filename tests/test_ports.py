"""Cells with several currents and several outputs: the same identities as for one of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_close

import hyprjax as hj

T, B, M, N = 12, 2, 3, 4
SPIKE = hj.surrogate.fast_sigmoid(slope=2.0)


def step(neuron, state, current):
    """Conductances that act on each other, and more than one thing that leaves the neuron."""
    g = 0.6 * state["g"] + jax.nn.softplus(current["inh"])
    v = neuron["decay"] * state["v"] * (1 - 0.3 * jnp.tanh(g)) + current["exc"] - 0.2 * g * jnp.sin(state["v"])
    z = SPIKE(v - 0.5)
    return {"g": g, "v": v * (1 - 0.6 * z)}, {"spike": z, "graded": jnp.tanh(v) * neuron["decay"], "g": g}


CELL = hj.Cell(
    init=lambda key, n: {"decay": 0.5 + 0.4 * jax.random.uniform(key, (n,))},
    rest=lambda neuron, batch, dtype: {name: jnp.zeros((*batch, len(neuron["decay"])), dtype) for name in ("g", "v")},
    step=step,
    weights=hj.weights.heterogeneous(1.0, spread=2.0),
    name="ported",
    ports=("inh", "exc"),
    feedback=lambda out: out["spike"] + 0.3 * out["graded"],
    sends=lambda out: (out["graded"], out["spike"]),
)
RNG, KEY = np.random.default_rng(0), jax.random.key(0)
INPUTS = {
    "one": RNG.normal(size=(T, B, M)),
    "by port": {"exc": RNG.normal(size=(T, B, M)), "inh": RNG.normal(size=(T, B, M + 2))},
}
RESETS = RNG.random((T, B)) < 0.15
WEIGHTS = RNG.normal(size=(T, 2, B, N))


def layer_for(inputs, full=True):
    n_in = {port: x.shape[-1] for port, x in inputs.items()} if isinstance(inputs, dict) else inputs.shape[-1]
    layer = hj.init_layer(KEY, CELL, n_in, N, recurrent=True, dtype=jnp.float64)
    layer["bias"]["exc"] += 0.1
    if not full:
        del layer["bias"]["exc"], layer["w_rec"]["inh"]
        if not isinstance(inputs, dict):
            del layer["w_in"]["inh"]
    return layer


def plain(layer, inputs, resets=None, cut=False):
    """The layer as loops, whatever `unroll` does; `cut` stops the gradient of what goes round."""
    rest = CELL.rest(layer["neuron"], (B,), jnp.float64)
    state, back, outputs = rest, jnp.zeros((B, N)), []
    for t in range(T):
        if resets is not None:
            state = jax.tree.map(lambda r, s, t=t: jnp.where(resets[t][:, None], r, s), rest, state)
            back = jnp.where(resets[t][:, None], 0, back)
        current = {}
        for port in CELL.ports:
            x = inputs[port][t] if isinstance(inputs, dict) else inputs[t]
            current[port] = layer["bias"].get(port, 0.0) + jnp.zeros((B, N))
            if port in layer["w_in"]:
                current[port] += x @ layer["w_in"][port]
            if port in layer["w_rec"]:
                current[port] += (jax.lax.stop_gradient(back) if cut else back) @ layer["w_rec"][port]
        state, out = step(layer["neuron"], state, current)
        back = CELL.feedback(out)
        outputs.append(jnp.stack(CELL.sends(out)))
    return jnp.stack(outputs)


def loss_of(outputs):
    return (jnp.sin(outputs) * WEIGHTS[: len(outputs)] + 0.1 * outputs**2).sum()


def loss_fn(layer, xs):
    outputs = jnp.stack(hj.unroll(CELL, layer, xs["inputs"], resets=xs.get("resets")), axis=1)
    return (jnp.sin(outputs) * xs["weights"] + 0.1 * outputs**2).sum()


def data(inputs, resets):
    return {"inputs": inputs, "weights": WEIGHTS} | ({"resets": RESETS} if resets else {})


CASES = [("one", True, False), ("one", False, True), ("by port", True, True), ("by port", False, False)]


@pytest.mark.parametrize(("inputs", "full", "resets"), CASES)
def test_values_and_gradients(inputs, full, resets):
    inputs = INPUTS[inputs]
    layer, xs, at = layer_for(inputs, full), data(inputs, resets), RESETS if resets else None
    outputs = jnp.stack(hj.unroll(CELL, layer, inputs, resets=at), axis=1)
    assert np.abs(outputs - plain(layer, inputs, at)).max() < 1e-13
    assert 0.05 < outputs[:, 1].mean() < 0.95
    exact = jax.grad(lambda layer, x: loss_of(plain(layer, x, at)), (0, 1))(layer, inputs)
    cut = jax.grad(lambda layer, x: loss_of(plain(layer, x, at, cut=True)), (0, 1))(layer, inputs)
    assert_close(hj.hypr_grad(loss_fn, recurrent_credit="segment", reduction="sum")(layer, xs), exact[0], 1e-12)
    for length, scan in ((6, "associative"), (5, "sequential"), (1, "auto")):
        gradient = hj.hypr_grad(loss_fn, segment_length=length, scan=scan, reduction="sum")
        assert_close(gradient(layer, xs), cut[0], 1e-12)
    model = lambda layer, xs: hj.unroll(CELL, layer, xs[0], resets=xs[1])  # noqa: E731
    of_model = lambda wrapped: lambda layer, x: loss_of(jnp.stack(wrapped(layer, (x, at)), axis=1))  # noqa: E731
    grads = lambda wrapped: jax.grad(of_model(wrapped), (0, 1))(layer, inputs)  # noqa: E731
    assert_close(grads(hj.hypr(model, segment_length=T)), cut, 1e-12)
    assert_close(grads(hj.hypr(model, segment_length=5))[0], cut[0], 1e-12)
    assert_close(grads(hj.bptt(model, segment_length=5)), exact, 1e-12)


def test_stream_learner_vmap_and_ensemble():
    inputs = INPUTS["by port"]
    layer, xs = layer_for(inputs), data(inputs, True)
    net = hj.stream(lambda layer, x: hj.unroll(CELL, layer, x["inputs"], resets=x["resets"]))
    carry, parts = net.init(layer, xs), []
    for start in (0, 5, 6):
        piece = jax.tree.map(lambda x, start=start: x[start : {0: 5, 5: 6, 6: T}[start]], xs)
        out, carry = net.apply(layer, carry, piece)
        parts.append(jnp.stack(out, axis=1))
    assert_close(jnp.concatenate(parts), plain(layer, inputs, RESETS), 1e-13)
    learner = hj.hypr_stream(loss_fn)
    carry, total = learner.init(layer, xs), jax.tree.map(jnp.zeros_like, layer)
    for start in range(0, T, 4):
        (_, grads), carry = learner.value_and_grad(layer, carry, jax.tree.map(lambda x, s=start: x[s : s + 4], xs))
        total = jax.tree.map(jnp.add, total, grads)
    whole = hj.hypr_grad(loss_fn, reduction="sum")
    assert_close(total, whole(layer, xs), 1e-12)
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), layer, jax.tree.map(lambda p: 1.1 * p, layer))
    ensemble = hj.hypr_grad(lambda p, x: jax.vmap(lambda p: loss_fn(p, x))(p).sum(), segment_length=5, reduction="sum")
    by_member = [whole(jax.tree.map(lambda p, i=i: p[i], layers), xs) for i in range(2)]
    assert_close(ensemble(layers, xs), jax.tree.map(lambda *leaves: jnp.stack(leaves), *by_member), 1e-12)

    def of_batch(layer, xs):
        def one(x):
            return jnp.stack(hj.unroll(CELL, layer, x["inputs"], resets=x["resets"]), axis=1)

        outputs = jax.vmap(one, in_axes=1, out_axes=2)({name: xs[name] for name in ("inputs", "resets")})
        return (jnp.sin(outputs) * xs["weights"] + 0.1 * outputs**2).sum()

    assert_close(hj.hypr_grad(of_batch, segment_length=5, reduction="sum")(layer, xs), whole(layer, xs), 1e-12)


def test_factored_traces_are_exact_at_full_rank():
    layer, xs = layer_for(INPUTS["by port"]), data(INPUTS["by port"], False)
    full = hj.hypr_grad(loss_fn, segment_length=4, reduction="sum")(layer, xs)
    factored = hj.hypr_grad(loss_fn, segment_length=4, reduction="sum", traces="factored", trace_rank=N)(layer, xs)
    assert_close(factored, full, 1e-10)


def test_state_as_output():
    cell = hj.with_state(hj.alif(tau_a=(5.0, 30.0)))
    layer = hj.init_layer(KEY, cell, M, N, recurrent=True, dtype=jnp.float64)
    inputs = INPUTS["one"]
    spikes, state = hj.unroll(cell, layer, inputs)
    assert jnp.array_equal(spikes, hj.unroll(hj.alif(tau_a=(5.0, 30.0)), layer, inputs))
    assert set(state) == {"v", "a"}
    assert state["v"].shape == spikes.shape

    def loss(layer, xs):
        spikes, state = hj.unroll(cell, layer, xs)
        return (jax.nn.relu(jnp.abs(state["v"]) - 0.4) ** 2).sum() + (spikes * jnp.cos(state["a"])).sum()

    exact = hj.hypr_grad(loss, recurrent_credit="segment", reduction="sum")(layer, inputs)
    assert_close(exact, jax.grad(loss)(layer, inputs), 1e-12)
    one = hj.hypr_grad(loss, segment_length=1, reduction="sum")(layer, inputs)
    assert_close(one, hj.hypr_grad(loss, segment_length=T, reduction="sum")(layer, inputs), 1e-12)


def test_raw_spikes_go_round_a_filtered_layer():
    inner, tau = hj.alif(tau_a=(5.0, 30.0)), 7.0
    cell = hj.filtered(inner, tau, recurrent="spikes")
    layer = hj.init_layer(KEY, cell, M, N, recurrent=True, dtype=jnp.float64)
    bare = {**layer, "neuron": layer["neuron"]["cell"]}
    y, expected = 0.0, []
    for z in hj.unroll(inner, bare, INPUTS["one"]):
        y = np.exp(-1 / tau) * y + (1 - np.exp(-1 / tau)) * z
        expected.append(y)
    assert_close(hj.unroll(cell, layer, INPUTS["one"]), jnp.stack(expected), 1e-13)
    loss = lambda layer, x: (hj.unroll(cell, layer, x) ** 2).sum()  # noqa: E731
    exact = hj.hypr_grad(loss, recurrent_credit="segment", reduction="sum")(layer, INPUTS["one"])
    assert_close(exact, jax.grad(loss)(layer, INPUTS["one"]), 1e-12)
    lengths = [hj.hypr_grad(loss, segment_length=n, reduction="sum")(layer, INPUTS["one"]) for n in (1, 5, T)]
    assert_close(lengths[0], lengths[2], 1e-12)
    assert_close(lengths[1], lengths[2], 1e-12)
    with pytest.raises(ValueError, match="filtered: recurrent must be one of"):
        hj.filtered(inner, recurrent="raw")


def test_what_does_not_fit_the_ports_is_refused():
    one, by_port = INPUTS["one"], INPUTS["by port"]
    layer = layer_for(by_port)
    refuses = lambda words: pytest.raises(ValueError, match=words)  # noqa: E731
    with refuses(r'params\["w_in"\] must be a dict with an array for each port, exc, inh'):
        hj.unroll(CELL, {**layer, "w_in": layer["w_in"]["exc"]}, one)
    with refuses(r"inputs has the ports exc, inhib, but the cell 'ported' has exc, inh"):
        hj.unroll(CELL, layer, {"exc": by_port["exc"], "inhib": by_port["inh"]})
    with refuses("inputs are for the ports exc, but params has w_in for exc, inh"):
        hj.unroll(CELL, layer, {"exc": by_port["exc"]})
    with refuses(r'params\["w_in"\]\["inh"\] has 5 input rows but inputs have 3 features'):
        hj.unroll(CELL, layer, one)
    with refuses(r"the inputs of all ports must have the same \[T, \*batch\]"):
        hj.unroll(CELL, layer, {**by_port, "exc": by_port["exc"][:-1]})
    with refuses("is a dict, but the cell 'lif' has one current without ports"):
        hj.unroll(hj.lif(), layer, by_port)
    with refuses("n_in has the ports up, but the cell 'ported' has inh, exc"):
        hj.init_layer(KEY, CELL, {"up": 3}, N)
    with refuses(r"the output of the cell 'ported' has several parts.*Cell.feedback"):
        hj.unroll(CELL._replace(feedback=None), layer, by_port)
    with refuses("step returned the feedback"):
        hj.unroll(CELL._replace(feedback=lambda out: out["spike"].sum(-1)), layer, by_port)


def test_reports_and_calibration():
    found = hj.check_cell(CELL)
    assert found.ok, found
    layer = layer_for(INPUTS["by port"])
    report = hj.check(loss_fn, layer, data(INPUTS["by port"], False), segment_length=4, reduction="sum")
    (one,) = report.layers
    assert one.cell == "ported"
    assert one.shape == (T, B, N)
    assert 0.05 < one.rate < 0.95, "of the part that is spikes, not of the first one"
    with pytest.raises(ValueError, match="calibrate: the output of ported has several parts"):
        hj.calibrate(CELL, layer, INPUTS["by port"])
    spiking = CELL._replace(sends=lambda out: out["spike"])
    calibrated = hj.calibrate(spiking, layer, INPUTS["by port"], rate=0.4)
    assert 0.32 < hj.unroll(spiking, calibrated, INPUTS["by port"]).mean() < 0.48


def test_a_port_costs_what_a_current_without_a_name_costs():
    """Compiled flops and memory of a layer, whether its one current has a name or not."""
    plain = hj.lif()
    named = plain._replace(ports=("i",), step=lambda neuron, state, current: plain.step(neuron, state, current["i"]))
    costs = []
    for cell in (plain, named):
        layer = hj.init_layer(KEY, cell, 20, 32, recurrent=True)
        loss = lambda layer, x, cell=cell: (hj.unroll(cell, layer, x) ** 2).mean()  # noqa: E731
        xs = jax.ShapeDtypeStruct((100, 8, 20), jnp.float32)
        compiled = jax.jit(hj.hypr_grad(loss, segment_length=25)).lower(layer, xs).compile()
        costs.append((compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes))
    assert costs[0] == costs[1]


def test_a_module_of_flax_has_ports():
    nnx = pytest.importorskip("flax.nnx")
    import hyprjax.nnx as modules

    layer = modules.Recurrent(CELL, {"exc": M, "inh": M + 2}, N, dtype=jnp.float64, rngs=nnx.Rngs(0))
    outputs = jnp.stack(layer(INPUTS["by port"]), axis=1)
    assert np.abs(outputs - plain(layer.params, INPUTS["by port"])).max() < 1e-13
