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
