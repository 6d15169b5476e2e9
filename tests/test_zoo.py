"""Gated units against Flax's, biophysical and dendritic neurons against NumPy loops of their equations; wrappers."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from networks import assert_close, assert_equal

import hyprjax as hj

KEY = jax.random.key(0)
M, N, B = 3, 5, 2
STEPS = 500


def layer_and_inputs(cell):
    """A layer that is excited, and its inputs over 500 steps."""
    layer = hj.init_layer(KEY, cell, M, N, bias=False, dtype=jnp.float64)
    layer["w_in"] = jax.tree.map(jnp.abs, layer["w_in"])
    return layer, np.random.default_rng(0).uniform(0, 1, (STEPS, B, M))


# --- gated units ----------------------------------------------------------------------------------


def linen_gru(layer, x):
    part = lambda port, kind: layer[kind][port]  # noqa: E731
    params = {f"i{gate}": {"kernel": part(port, "w_in"), "bias": part(port, "bias")} for gate, port in GRU.items()}
    params |= {f"h{gate}": {"kernel": part(gate, "w_rec")} for gate in "rz"}
    params["hn"] = {"kernel": part("n_rec", "w_rec"), "bias": part("n_rec", "bias")}
    return scan_linen(linen.GRUCell(N, param_dtype=x.dtype), params, jnp.zeros((B, N)), x)


def linen_lstm(layer, x):
    params = {f"i{gate}": {"kernel": layer["w_in"][gate]} for gate in "ifgo"}
    params |= {f"h{gate}": {"kernel": layer["w_rec"][gate], "bias": layer["bias"][gate]} for gate in "ifgo"}
    return scan_linen(linen.OptimizedLSTMCell(N, param_dtype=x.dtype), params, (jnp.zeros((B, N)),) * 2, x)


def scan_linen(cell, params, carry, x):
    return jax.lax.scan(lambda carry, x: cell.apply({"params": params}, carry, x), carry, x)[1]


def nnx_gru(layer, x):  # without the bias of n_rec
    cell = nnx.GRUCell(M, N, param_dtype=x.dtype, rngs=nnx.Rngs(0))
    side = lambda part, ports: jnp.concatenate([layer[part][port] for port in ports], axis=-1)  # noqa: E731
    cell.dense_i.kernel[...], cell.dense_i.bias[...] = side("w_in", GRU.values()), side("bias", GRU.values())
    cell.dense_h.kernel[...] = side("w_rec", ("r", "z", "n_rec"))
    return scan_nnx(cell, jnp.zeros((B, N)), x)


def nnx_lstm(layer, x):
    cell = nnx.OptimizedLSTMCell(M, N, param_dtype=x.dtype, rngs=nnx.Rngs(0))
    side = lambda part: jnp.concatenate([layer[part][port] for port in "ifgo"], axis=-1)  # noqa: E731
    cell.dense_i.kernel[...] = side("w_in")
    cell.dense_h.kernel[...], cell.dense_h.bias[...] = side("w_rec"), side("bias")
    return scan_nnx(cell, (jnp.zeros((B, N)),) * 2, x)


def scan_nnx(cell, carry, x):
    graph, state = nnx.split(cell)
    return jax.lax.scan(lambda carry, x: nnx.merge(graph, state)(carry, x), carry, x)[1]


GRU = {"r": "r", "z": "z", "n": "n_in"}
FLAX = {"linen gru": (hj.gru(), linen_gru), "linen lstm": (hj.lstm(), linen_lstm)}
FLAX |= {"nnx gru": (hj.gru(), nnx_gru), "nnx lstm": (hj.lstm(), nnx_lstm)}


@pytest.mark.parametrize("name", FLAX)
def test_gated_units_are_those_of_flax(name):
    cell, flax = FLAX[name]
    layer = hj.init_layer(KEY, cell, M, N, recurrent=True, dtype=jnp.float64)
    layer["bias"] = {port: 0.3 * jax.random.normal(jax.random.key(i), N) for i, port in enumerate(cell.ports)}
    if name == "nnx gru":
        del layer["bias"]["n_rec"]
    x, weights = jax.random.normal(KEY, (50, B, M)), jax.random.normal(jax.random.key(1), (50, B, N))
    outputs = hj.unroll(cell, layer, x)
    assert np.abs(outputs - flax(layer, x)).max() < 1e-12
    assert outputs.std() > 0.1
    loss = lambda run: lambda layer, xs: (jnp.sin(run(layer, xs[0])) * xs[1]).sum()  # noqa: E731
    ours, theirs = loss(lambda layer, x: hj.unroll(cell, layer, x)), loss(flax)
    of_flax = {**jax.grad(theirs)(layer, (x, weights)), "neuron": jax.grad(ours)(layer, (x, weights))["neuron"]}
    options = {"recurrent_credit": "segment", "segment_length": 50, "reduction": "sum"}
    assert_close(hj.hypr_grad(ours, **options)(layer, (x, weights)), of_flax, 1e-12)


def test_gates_have_the_parts_that_they_need():
    layer = hj.init_layer(KEY, hj.gru(), M, N, recurrent=True)
    assert {part: set(layer[part]) for part in ("w_in", "w_rec", "bias")} == {
        "w_in": {"r", "z", "n_in"},
        "w_rec": {"r", "z", "n_rec"},
        "bias": {"r", "z", "n_in", "n_rec"},
    }
    w_rec = np.asarray(layer["w_rec"]["n_rec"])
    assert np.allclose(w_rec @ w_rec.T, np.eye(N), atol=1e-5)
    with pytest.raises(ValueError, match="n_in has the ports n_rec, but the cell 'gru' has r, z, n_in"):
        hj.init_layer(KEY, hj.gru(), {"n_rec": M}, N)
    filtered = hj.init_layer(KEY, hj.filtered(hj.gru()), M, N, recurrent=True)
    assert filtered["w_in"].keys() == layer["w_in"].keys()


# --- refractory -----------------------------------------------------------------------------------


def eprop(p, current, n_refractory, beta, threshold=0.6):
    """LIF and ALIF as in Bellec et al. 2020 and the authors' code, whose counter goes down from `n_refractory`."""
    v, a, z, r = np.zeros((4, *current.shape[1:]))
    for x in current:
        a = np.exp(-1 / p.get("tau_a", 1.0)) * a + z
        v = np.exp(-1 / p["tau"]) * v + x - threshold * z
        z = (v > threshold + beta * a) * (r <= 0.0)
        r = np.clip(r + n_refractory * z - 1, 0, n_refractory)
        yield z


@pytest.mark.parametrize("inner", [hj.lif(), hj.alif(tau_a=50.0)])
def test_refractory_is_that_of_eprop(inner):
    cell = hj.refractory(inner, 4)
    layer, x = layer_and_inputs(cell)
    neuron = jax.tree.map(np.asarray, layer["neuron"])
    expected = np.stack(list(eprop(neuron, x @ layer["w_in"], 5, neuron.get("beta", 0.0))))
    assert 0.05 < expected.mean() < 0.2
    assert np.array_equal(hj.unroll(cell, layer, x), expected)
    free = hj.unroll(inner, layer, x)
    assert (np.diff(np.flatnonzero(free[:, 0, 0])) == 1).any(), "or the period holds nothing back"


def test_held_back_spikes_have_no_gradient():
    cell, neuron = hj.refractory(hj.lif(), 4), {"tau": jnp.full(6, 20.0)}
    state = {"cell": {"v": jnp.full(6, 0.5)}, "wait": jnp.arange(6.0)}  # held back from 2 on
    z, pull = jax.vjp(lambda current: cell.step(neuron, state, current)[1], jnp.full(6, 0.3))
    assert z.tolist() == [1, 1, 0, 0, 0, 0]
    gradient = pull(jnp.ones(6))[0]
    assert (gradient[:2] > 0.1).all()
    assert not gradient[2:].any()


@pytest.mark.parametrize("name", ["lif", "cuba_lif", "alif", "ef_adlif", "se_adlif", "rf", "brf"])
def test_a_spike_held_back_is_none_for_the_neuron(name):
    """Held back for good, it is as if the threshold were out of reach."""
    cell, silent = getattr(hj, name)(), getattr(hj, name)(threshold=1e9)
    layer, x = layer_and_inputs(cell)
    state = held = cell.rest(layer["neuron"], (B,), jnp.float64)
    crossed = 0
    for current in 5 * x[:100] @ layer["w_in"]:
        crossed += cell.step(layer["neuron"], held, current)[1].sum()
        state, _ = silent.step(layer["neuron"], state, current)
        held, z = cell.step(layer["neuron"], held, current, may_spike=(0.0, 0.0))
        assert not z.any()
        assert_equal(held, state)
    assert crossed > 100


def test_a_cell_without_may_spike_is_refused():
    with pytest.raises(TypeError, match=r"refractory: step of the cell .* takes no may_spike"):
        hj.refractory(hj.filtered(hj.lif()), 5)
    with pytest.raises(TypeError, match="refractory: steps must be an int"):
        hj.refractory(hj.lif(), 2.5)
    with pytest.raises(ValueError, match="refractory: steps must be a positive int, got 0"):
        hj.refractory(hj.lif(), 0)


# --- biophysical and dendritic neurons ------------------------------------------------------------


def adex(p, current):
    v, w = np.zeros((2, *current.shape[1:]))
    for x in current:
        leak = np.exp(-1 / p["tau"])
        u = leak * v + (1 - leak) * (0.099 * np.exp((v - 1) / 0.099) - w + x)
        w = np.exp(-1 / p["tau_w"]) * w + (1 - np.exp(-1 / p["tau_w"])) * p["a"] * v
        z = (u > 1 + 5 * 0.099).astype(float)
        w += p["b"] * z
        v = np.where(z, 0, u)
        yield z


def izhikevich(p, current):
    """In mV, as published, but for the cut at 30 and -100 mV."""
    a, b, c, d = p["a"], p["b"], 100 * p["c"] - 70, 100 * p["d"]
    v, u = np.full((2, *current.shape[1:]), [[[-70.0]], [[-14.0]]])
    for x in current:
        for _ in range(2):
            v = np.clip(v, -100, 30)
            v = v + 0.5 * (0.04 * v**2 + 5 * v + 140 - u + 100 * x)
        z = v > 30
        v = np.clip(v, -100, 30)
        u = u + a * (b * v - u)
        v, u = np.where(z, c, v), np.where(z, u + d, u)
        yield z


def coba_lif(p, current):
    g_exc, g_inh, v = np.zeros((3, *current["exc"].shape[1:]))
    for exc, inh in zip(current["exc"], current["inh"], strict=True):
        g_exc = np.exp(-1 / p["tau_exc"]) * g_exc + np.maximum(exc, 0)
        g_inh = np.exp(-1 / p["tau_inh"]) * g_inh + np.maximum(inh, 0)
        # The exact solution of tau dv/dt = -v + g_exc (6 - v) + g_inh (-2 - v) over a step
        v_inf = (6 * g_exc - 2 * g_inh) / (1 + g_exc + g_inh)
        v = v_inf + (v - v_inf) * np.exp(-(1 + g_exc + g_inh) / p["tau"])
        z = v > 1
        v = np.where(z, 0, v)
        yield z


def dh_lif(p, current):
    shape = current["branch0"].shape
    branches, v, z = np.zeros((4, *shape[1:])), np.zeros(shape[1:]), np.zeros(shape[1:])
    beta = np.stack([np.exp(-1 / p["tau_branch"][f"branch{d}"]) for d in range(4)])[:, None]
    for t in range(len(current["branch0"])):
        x = np.stack([current[f"branch{d}"][t] for d in range(4)])
        branches = beta * branches + (1 - beta) * x
        alpha = np.exp(-1 / p["tau"])
        v = alpha * v + (1 - alpha) * branches.sum(0) - z
        z = (v > 1).astype(float)
        yield z


def two_compartment(p, current):
    dendrite, soma = np.zeros((2, *current.shape[1:]))
    for x in current:
        dendrite = dendrite - p["beta_d"] * soma + x
        soma = soma + p["beta_s"] * dendrite
        z = (soma > 1).astype(float)
        dendrite, soma = dendrite - 0.5 * z, soma - z
        yield z


@pytest.mark.parametrize("published", [adex, izhikevich, coba_lif, dh_lif, two_compartment])
def test_trajectory_follows_the_published_equations(published):
    cell = getattr(hj, published.__name__)()
    layer = hj.init_layer(KEY, cell, M, 8, bias=False, dtype=jnp.float64)
    if not cell.ports:
        layer["w_in"] = jnp.abs(layer["w_in"])
    x = np.random.default_rng(0).uniform(0, 1, (STEPS, B, M))
    current = jax.tree.map(lambda w: x @ np.asarray(w), layer["w_in"])
    expected = np.stack(list(published(jax.tree.map(np.asarray, layer["neuron"]), current)))
    assert 0.01 < expected.mean() < 0.9
    assert np.array_equal(hj.unroll(cell, layer, x), expected)


# A middle of each model's parameters, so that a few steps have all that is in its equations.
SMALL = {
    "refractory": hj.refractory(hj.alif(tau_a=(5.0, 30.0)), 2),
    "adex": hj.adex(tau=(2.0, 5.0), tau_w=20.0, delta=0.3),
    "izhikevich": hj.izhikevich(a=(0.1, 0.3)),
    "coba_lif": hj.coba_lif(tau=5.0, tau_exc=2.0, tau_inh=3.0),
    "dh_lif": hj.dh_lif(tau=(2.0, 5.0), tau_branch=(2.0, 10.0), branches=2),
    "two_compartment": hj.two_compartment(beta_d=(0.2, 0.8)),
}


@pytest.mark.parametrize("name", SMALL)
def test_gradients(name):
    cell = SMALL[name]
    layer = hj.init_layer(KEY, cell, M, N, recurrent=True, dtype=jnp.float64)
    x, weights = jax.random.normal(KEY, (24, B, M)), jax.random.normal(jax.random.key(1), (24, B, N))

    def loss(layer, xs):
        outputs = hj.unroll(cell, layer, xs["inputs"])
        return (jnp.sin(outputs) * xs["weights"] + 0.1 * outputs**2).sum()

    xs = {"inputs": x, "weights": weights}
    assert 0.05 < hj.unroll(cell, layer, x).mean() < 0.5
    exact = jax.jit(jax.grad(loss))(layer, xs)
    assert all(leaf.any() for leaf in jax.tree.leaves(exact)), "a parameter without an influence"
    grad = lambda **options: jax.jit(hj.hypr_grad(loss, reduction="sum", **options))(layer, xs)  # noqa: E731
    assert_close(grad(segment_length=24, recurrent_credit="segment"), exact, 1e-12)
    whole = grad(segment_length=24, scan="sequential")
    assert_close(grad(segment_length=7), whole, 1e-12)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(*map(jax.tree.leaves, (whole, exact)), strict=True))


@pytest.mark.parametrize("cell", [*SMALL.values(), hj.gru(), hj.lstm()], ids=lambda cell: cell.name)
def test_every_cell_is_one(cell):
    report = hj.check_cell(cell, n=4, steps=1000)
    assert report.ok, report


def test_conductances_do_not_go_below_zero():
    cell = hj.coba_lif()
    layer = hj.init_layer(KEY, hj.with_state(cell), M, N, dtype=jnp.float64)
    _, state = hj.unroll(hj.with_state(cell), layer, 100 * jax.random.normal(KEY, (200, B, M)))
    assert min(state["g_exc"].min(), state["g_inh"].min()) >= 0
    assert -2 <= state["v"].min() < -1.5
    assert state["v"].max() <= 1, "between reversal of inhibition and threshold"


def test_an_upstroke_is_bounded():
    for cell in (hj.adex(), hj.izhikevich(), hj.refractory(hj.adex(), 50), hj.refractory(hj.izhikevich(), 50)):
        layer = hj.init_layer(KEY, cell, M, N, dtype=jnp.float32)
        x = 1e4 * jax.random.normal(KEY, (100, B, M), jnp.float32)
        gradient = jax.jit(jax.grad(lambda layer, cell=cell, x=x: hj.unroll(cell, layer, x).sum()))(layer)
        chex.assert_tree_all_finite(gradient)


def test_what_is_out_of_range_is_refused():
    refuses = lambda words: pytest.raises(ValueError, match=words)  # noqa: E731
    with refuses("adex: tau_w must be at least 0.1 steps"):
        hj.adex(tau_w=0.0)
    with refuses("adex: a must be at least -1"):
        hj.adex(a=(-2.0, 1.0))
    with refuses("adex: v_reset must be below the peak"):
        hj.adex(v_reset=2.0)
    with refuses("izhikevich: c must be from -100 to 30 mV"):
        hj.izhikevich(c=40.0)
    with refuses("coba_lif: e_inh < threshold < e_exc is needed"):
        hj.coba_lif(e_exc=0.5)
    with refuses("dh_lif: branches must be a positive int, got 0"):
        hj.dh_lif(branches=0)
    with refuses("two_compartment: beta_s must be from 0 to 1"):
        hj.two_compartment(beta_s=1.5)


def test_project_keeps_parameters_in_range():
    far = {
        "adex": (hj.adex(), {"tau": -5.0, "a": -3.0}, {"tau": 5.0, "a": -1.0}),
        "izhikevich": (hj.izhikevich(), {"a": 3.0, "c": -2.0}, {"a": 1.0, "c": -0.3}),
        "coba_lif": (hj.coba_lif(), {"tau_exc": 0.0}, {"tau_exc": 0.1}),
        "two_compartment": (hj.two_compartment(), {"beta_d": 1.2}, {"beta_d": 1.0}),
    }
    for cell, moved, expected in far.values():
        neuron = cell.init(KEY, 2)
        projected = cell.project({**neuron, **{name: jnp.full(2, value) for name, value in moved.items()}})
        for name in neuron:
            assert np.allclose(projected[name], expected.get(name, neuron[name])), (cell.name, name)
    projected = hj.dh_lif(branches=2).project({"tau": jnp.array([-3.0]), "tau_branch": {"branch0": jnp.array([0.0])}})
    assert projected["tau"] == 3.0
    assert np.isclose(projected["tau_branch"]["branch0"], 0.1)


def test_dh_lif_draws_the_time_constants_of_the_paper():
    neuron = hj.dh_lif().init(KEY, 2000)
    decay = np.exp(-1 / np.asarray(neuron["tau_branch"]["branch1"]))
    x = np.log(decay / (1 - decay))  # sigma(x)
    assert 2 < x.min() < 2.1
    assert 5.9 < x.max() < 6
    assert np.isclose(x.mean(), 4, atol=0.1)
