"""The leaky integrator."""

from __future__ import annotations

from hyprjax._cell import Cell, Init, draw, zeros_state
from hyprjax.cells._parameters import decay_of, keep_time_constants, time_constant


def leaky_integrator(tau: Init = 20.0) -> Cell:
    """Leaky integrator, the usual readout: no spikes, the output is the membrane potential.

        v[t] = κ v[t-1] + (1-κ) I[t]                         κ = exp(-1/|τ|)

    State `v`; neuron parameter `tau`.

    Args:
      tau: initial time constant in steps, at least 0.1.

    Returns:
      A `Cell`. The default is the readout of Higuchi et al. 2024, there drawn from N(20, 1).

    Raises:
      ValueError: `tau` is out of range.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> readout = hj.leaky_integrator(tau=3.0)
      >>> params = hj.init_layer(jax.random.key(0), readout, n_in=36, n_out=6)
      >>> hj.unroll(readout, params, jnp.ones((50, 36))).shape
      (50, 6)
    """
    time_constant("leaky_integrator", "tau", tau)

    def step(neuron, state, current):
        decay = decay_of(neuron["tau"])
        v = decay * state["v"] + (1 - decay) * current
        return {"v": v}, v

    init = lambda key, n: {"tau": draw(key, tau, n)}  # noqa: E731
    return Cell(init, zeros_state("v"), step, name="leaky_integrator", project=keep_time_constants("tau"))
