"""Gated units against Flax's, biophysical and dendritic neurons against NumPy loops of their equations; wrappers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from networks import assert_close

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
        assert jax.tree.all(jax.tree.map(jnp.array_equal, held, state))
    assert crossed > 100


def test_a_cell_without_may_spike_is_refused():
    with pytest.raises(TypeError, match=r"refractory: step of the cell .* takes no may_spike"):
        hj.refractory(hj.filtered(hj.lif()), 5)
    with pytest.raises(TypeError, match="refractory: steps must be an int"):
        hj.refractory(hj.lif(), 2.5)
    with pytest.raises(ValueError, match="refractory: steps must be a positive int, got 0"):
        hj.refractory(hj.lif(), 0)
