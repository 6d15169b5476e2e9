"""Neuron models made from another one."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from hyprjax._cell import Cell, Init, draw, emit, is_cell, zeros_state
from hyprjax._checks.arguments import positive_int
from hyprjax.cells._parameters import decay_of, keep_time_constants, time_constant


def filtered(cell: Cell, tau: Init = 20.0, *, recurrent: str = "output") -> Cell:
    """A neuron model whose output is low-pass filtered: an exponential synapse behind every neuron.

        y[t] = κ y[t-1] + (1-κ) z[t]                         κ = exp(-1/|τ|)

    `y` is one more state variable, and the output: what the next layer and `w_rec` receive. With an
    instantaneous linear readout instead of a leaky one, nothing above the layer has memory, and
    HYPR is then exact in a layer without `w_rec` for every segment length. With `recurrent="spikes"`, `w_rec` receives
    `z`, and the gradient is that of e-prop with a leaky readout as published, for every segment length.

    State `cell`, `y`; neuron parameters `cell`, `tau`.

    Args:
      cell: the neuron model whose output is filtered.
      tau: initial time constant of the filter in steps, at least 0.1; the default is the readout's of
        Bellec et al. 2020.
      recurrent: what `w_rec` receives, the filtered `"output"` or the `"spikes"` of `cell`.

    Returns:
      A `Cell` with the weights and the ports of `cell`.

    Raises:
      TypeError: `cell` is not a cell.
      ValueError: `tau` is out of range, or `recurrent` is neither `"output"` nor `"spikes"`; when it is run, if the
        output of `cell` has several parts.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.filtered(hj.lif(), tau=10.0)
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=2, n_out=3)
      >>> hj.unroll(cell, params, jnp.ones((50, 2))).shape
      (50, 3)
    """
    is_cell("filtered", cell)
    time_constant("filtered", "tau", tau)
    if recurrent not in ("output", "spikes"):
        raise ValueError(f'filtered: recurrent must be one of "output" and "spikes", got {recurrent!r}')

    def init(key, n):
        key_cell, key_tau = jax.random.split(key)
        return {"cell": cell.init(key_cell, n), "tau": draw(key_tau, tau, n)}

    def rest(neuron, batch_shape, dtype):
        return {"cell": cell.rest(neuron["cell"], batch_shape, dtype), **zeros_state("y")(neuron, batch_shape, dtype)}

    def step(neuron, state, current):
        inner, output = cell.step(neuron["cell"], state["cell"], current)
        z, back = emit(cell, output)
        if jax.tree.structure(z).num_nodes != 1:
            raise ValueError(
                f"filtered: the output of {cell.name} has several parts; filter those that are needed in step"
            )
        decay = decay_of(neuron["tau"])
        y = decay * state["y"] + (1 - decay) * z
        return {"cell": inner, "y": y}, (y, back) if recurrent == "spikes" else y

    def project(neuron):
        return keep_time_constants("tau")(neuron) | {"cell": cell.project(neuron["cell"])}

    made = cell._replace(init=init, rest=rest, step=step, name=f"filtered({cell.name})", constants=(), project=project)
    made = made._replace(sends=None, feedback=None)  # of the outputs of `cell`, not of this one
    if recurrent == "spikes":
        return made._replace(sends=lambda output: output[0], feedback=lambda output: output[1])
    return made


def with_state(cell: Cell) -> Cell:
    """A neuron model whose state is an output, too, so that membrane potentials can be in the loss.

    `unroll` returns a pair: what it returns for `cell`, and the state after each step, a pytree of `[t, *batch, n]`
    arrays. Parameters are those of `cell`, and `w_rec` carries back what it carries there. Credit for a state is as
    exact as that for a spike.

    Args:
      cell: the neuron model.

    Returns:
      A `Cell`.

    Raises:
      TypeError: `cell` is not a cell.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.lif()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=2, n_out=3)
      >>> spikes, state = hj.unroll(hj.with_state(cell), params, jnp.ones((50, 2)))
      >>> state["v"].shape
      (50, 3)
    """
    is_cell("with_state", cell)

    def step(neuron, state, current):
        state, output = cell.step(neuron, state, current)
        return state, (output, state)

    return cell._replace(
        step=step,
        name=f"with_state({cell.name})",
        sends=lambda output: (emit(cell, output[0])[0], output[1]),
        feedback=lambda output: emit(cell, output[0])[1],
    )


def refractory(cell: Cell, steps: int) -> Cell:
    """A neuron model with an absolute refractory period (Bellec et al. 2020): silent for some steps after each spike.

        z[t] = 0 and ∂z[t]/∂s[t] = 0        if one of z[t-1], ..., z[t-steps] is 1
        z[t] and ∂z[t]/∂s[t] of `cell`      else

    A spike that is held back is none for the neuron either: it resets and adapts nothing. The membrane goes on, and
    where it is above threshold at the end of the period, the neuron fires then. The authors' code counts the step of
    the spike, too: its `n_refractory` is `steps + 1`.

    State `cell` and `wait`, a counter without a gradient; neuron parameters and weights are those of `cell`.

    Args:
      cell: a spiking model of `hyprjax.cells`, or one of your own whose `step` takes a keyword argument `may_spike`, a
        pair of masks `[*batch, n]` for the step before and for this one, and multiplies with them the spikes that it
        finds in `state` and those that it makes.
      steps: length of the refractory period, at least 1. The paper has 2 to 5 ms.

    Returns:
      A `Cell`.

    Raises:
      TypeError: `cell` is not a cell, `steps` is not an int, or `step` of `cell` does not take `may_spike`.
      ValueError: `steps` is not positive; when it is run, if the layer's dtype cannot count to `steps + 1`.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.refractory(hj.lif(), steps=4)
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=2, n_out=3)
      >>> params["w_in"] = jnp.ones((2, 3))
      >>> hj.unroll(cell, params, jnp.ones((50, 2))).sum(0)
      Array([10., 10., 10.], dtype=float32)

    References:
      Bellec et al. 2020, A solution to the learning dilemma for recurrent networks of spiking
      neurons, https://doi.org/10.1038/s41467-020-17236-y
    """
    is_cell("refractory", cell)
    steps = positive_int("refractory: steps", steps)
    if "may_spike" not in inspect.signature(cell.step).parameters:
        raise TypeError(
            f"refractory: step of the cell {cell.name!r} takes no may_spike; wrap a spiking model itself, as in "
            "hj.filtered(hj.refractory(hj.lif(), 5)), or give step of your own that argument"
        )

    def rest(neuron, batch_shape, dtype):
        if steps + 1 > 2 ** (jnp.finfo(dtype).nmant + 1):
            raise ValueError(f"refractory: {jnp.dtype(dtype)} cannot count {steps} steps; make the layer float32")
        return {"cell": cell.rest(neuron, batch_shape, dtype), **zeros_state("wait")(neuron, batch_shape, dtype)}

    def step(neuron, state, current):
        wait = stop_gradient(state["wait"])  # steps + 1 after a spike, then one less each step
        dtype = wait.dtype
        may_spike = ((wait == 0) | (wait > steps)).astype(dtype), (wait <= 1).astype(dtype)
        masked: Any = cell.step  # with the argument that was looked for above
        inner, z = masked(neuron, state["cell"], current, may_spike=may_spike)
        wait = jnp.where(stop_gradient(z) > 0, steps + 1, jnp.maximum(wait - 1, 0))
        return {"cell": inner, "wait": wait}, z

    return cell._replace(rest=rest, step=step, name=f"refractory({cell.name})", constants=())
