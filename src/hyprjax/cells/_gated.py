"""Gated units: every gate is a port."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hyprjax._cell import Cell
from hyprjax.weights import lecun_orthogonal


def gru() -> Cell:
    """Gated recurrent unit (Cho et al. 2014), with the equations of Flax, PyTorch and cuDNN.

        r[t] = σ(I_r[t])
        y[t] = σ(I_z[t])                                     the update gate, z elsewhere
        n[t] = tanh(I_n_in[t] + r[t] I_n_rec[t])
        h[t] = (1 - y[t]) n[t] + y[t] h[t-1]

    A layer has a current for each of the four ports `r`, `z`, `n_in` and `n_rec`: `w_in` for the first three, `w_rec`
    for all but `n_in`, `bias` for all. It sends `h`. With the same weights it is Flax's `nn.GRUCell`; `nnx.GRUCell` has
    no bias for `n_rec`. State `h`; neuron parameter `rest`, what `h` starts from, zero at first.

    HYPR cuts credit that passes through `w_rec`, which carries most of it in a gated unit: what is left is the memory
    `y[t] h[t-1]`. `recurrent_credit="segment"` keeps it inside of a segment, and λ = T or `hyprjax.bptt` altogether.

    Returns:
      A `Cell`. Weights are drawn as Flax does, `weights.lecun_orthogonal`.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> params = hj.init_layer(jax.random.key(0), hj.gru(), n_in=2, n_out=3, recurrent=True)
      >>> sorted(params["w_in"]), sorted(params["w_rec"])
      (['n_in', 'r', 'z'], ['n_rec', 'r', 'z'])
      >>> hj.unroll(hj.gru(), params, jnp.ones((50, 2))).shape
      (50, 3)

    References:
      Cho et al. 2014, Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation,
      https://arxiv.org/abs/1406.1078
    """
    return Cell(
        _init,
        _gru_rest,
        _gru_step,
        lecun_orthogonal,
        "gru",
        ports=("r", "z", "n_in", "n_rec"),
        lacks=(("n_in", "w_rec"), ("n_rec", "w_in")),
    )


def lstm() -> Cell:
    """Long short-term memory with a forget gate (Hochreiter & Schmidhuber 1997, Gers et al. 2000).

        i[t], f[t], o[t] = σ(I_i[t]), σ(I_f[t]), σ(I_o[t])
        c[t] = f[t] c[t-1] + i[t] tanh(I_g[t])
        h[t] = o[t] tanh(c[t])

    A layer has a current for each of the ports `i`, `f`, `g` and `o`, and sends `h`. With the same weights it is Flax's
    `LSTMCell` and `OptimizedLSTMCell`. As there, biases start from zero; with `params["bias"]["f"] + 1` the memory is
    longer at first. State `c`; neuron parameter `rest`, what `c` starts from, zero at first.

    Credit through `w_rec` is that of `gru`; what HYPR keeps is the cell's own, `f[t] c[t-1]`.

    Returns:
      A `Cell`. Weights are drawn as Flax does, `weights.lecun_orthogonal`.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> params = hj.init_layer(jax.random.key(0), hj.lstm(), n_in=2, n_out=3, recurrent=True)
      >>> hj.unroll(hj.lstm(), params, jnp.ones((50, 2))).shape
      (50, 3)

    References:
      Hochreiter, Schmidhuber 1997, Long Short-Term Memory, https://doi.org/10.1162/neco.1997.9.8.1735; Gers,
      Schmidhuber, Cummins 2000, Learning to Forget, https://doi.org/10.1162/089976600300015015
    """
    return Cell(_init, _lstm_rest, _lstm_step, lecun_orthogonal, "lstm", ports=("i", "f", "g", "o"))


def _init(key, n):
    return {"rest": jnp.zeros(n)}


def _trained(name):
    """The rest state of a unit whose variable `name` starts from a trained value."""

    def rest(neuron, batch_shape, dtype):
        return {name: jnp.broadcast_to(neuron["rest"], (*batch_shape, len(neuron["rest"]))).astype(dtype)}

    return rest


_gru_rest, _lstm_rest = _trained("h"), _trained("c")


def _gru_step(neuron, state, current):
    r, z = jax.nn.sigmoid(current["r"]), jax.nn.sigmoid(current["z"])
    n = jnp.tanh(current["n_in"] + r * current["n_rec"])
    h = (1 - z) * n + z * state["h"]
    return {"h": h}, h


def _lstm_step(neuron, state, current):
    i, f, o = (jax.nn.sigmoid(current[port]) for port in ("i", "f", "o"))
    c = f * state["c"] + i * jnp.tanh(current["g"])
    return {"c": c}, o * jnp.tanh(c)
