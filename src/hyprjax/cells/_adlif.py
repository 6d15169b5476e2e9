"""Adaptive leaky integrate-and-fire with subthreshold coupling: forward and symplectic Euler."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from hyprjax import surrogate
from hyprjax._cell import Cell, zeros_state
from hyprjax.cells._parameters import ALWAYS, clip, drawn, initial, positive, spike_function, time_constant
from hyprjax.weights import heterogeneous


def _adlif_parameters(maker: str, ranges: dict[str, tuple[float, float]], q: float):
    """What both adLIF discretisations share: `init`, `neuron -> α, ρ, q a, q b`, and `project`."""
    for name, bounds in ranges.items():
        if not isinstance(bounds, tuple):
            hint = f"; give a tuple: {name}={tuple(bounds)!r}" if isinstance(bounds, list) else ""
            raise ValueError(f"{maker}: {name} must be a range (low, high) with low <= high, got {bounds!r}{hint}")
    time_constant(maker, "tau_u", ranges["tau_u"])
    time_constant(maker, "tau_w", ranges["tau_w"])
    initial(maker, "a", ranges["a"], -1 / q, np.inf, f"at least -1 / q = {-1 / q:.4g}, or the membrane runs away")
    initial(maker, "b", ranges["b"])
    allowed = ranges | {"tau_u": (0.0, 1.0), "tau_w": (0.0, 1.0)}

    def project(neuron):
        return {**neuron, **{name: jnp.clip(neuron[name], *bounds) for name, bounds in allowed.items()}}

    def constants(neuron):
        def decay(name):
            low, high = ranges[name]
            return jnp.exp(-1 / (low + (high - low) * clip(neuron[name], 0.0, 1.0)))

        a, b = (q * clip(neuron[name], *ranges[name]) for name in ("a", "b"))
        return decay("tau_u"), decay("tau_w"), a, b

    return drawn(**allowed), constants, project


def ef_adlif(
    tau_u: tuple[float, float] = (5.0, 25.0),
    tau_w: tuple[float, float] = (60.0, 300.0),
    a: tuple[float, float] = (0.0, 1.0),
    b: tuple[float, float] = (0.0, 2.0),
    *,
    q: float = 120.0,
    threshold: float = 1.0,
    spike: surrogate.SpikeFn | None = None,
) -> Cell:
    """Adaptive LIF neuron discretised by forward Euler (Bittar & Garner 2022; as in Baronig et al. 2024).

        û[t] = α u[t-1] + (1-α) (I[t] - w[t-1])              α = exp(-1/τ_u)
        w[t] = ρ w[t-1] + (1-ρ) q (a u[t-1] + b z[t-1])      ρ = exp(-1/τ_w)
        z[t] = Θ(û[t] - ϑ)
        u[t] = û[t] (1 - sg(z[t]))

    The adaptation follows the step before, which destabilises fast oscillations: `se_adlif` is the better
    discretisation, this is what it is compared with. State `u` (as û) and `w`; neuron parameters as in `se_adlif`.

    Args:
      tau_u: range of the membrane time constant in steps, from 0.1 on.
      tau_w: range of the adaptation time constant in steps, from 0.1 on.
      a: range of the subthreshold coupling, from `-1 / q` on, below which the membrane runs away.
      b: range of the spike-triggered adaptation.
      q: common scale of `a` and `b`.
      threshold: firing threshold ϑ.
      spike: spike function; default `surrogate.slayer()`, as in the paper.

    Returns:
      A `Cell`. Default ranges and `q` are those of `se_adlif`.

    Raises:
      ValueError: a range is not `(low, high)` with `low <= high` or too low, or `threshold` or `q` is not positive.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.ef_adlif(q=60.0)
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=4, n_out=36, recurrent=True)
      >>> hj.unroll(cell, params, jnp.ones((50, 8, 4))).shape
      (50, 8, 36)

    References:
      Bittar, Garner 2022, A surrogate gradient spiking baseline for speech command recognition,
      https://doi.org/10.3389/fnins.2022.865897; Baronig et al. 2024, https://arxiv.org/abs/2408.07517
    """
    threshold, q = positive("ef_adlif", "threshold", threshold), positive("ef_adlif", "q", q)
    ranges = {"tau_u": tau_u, "tau_w": tau_w, "a": a, "b": b}
    init, constants, project = _adlif_parameters("ef_adlif", ranges, q)
    spike = spike_function("ef_adlif", spike or surrogate.slayer())

    def step(neuron, state, current, may_spike=ALWAYS):
        alpha, rho, qa, qb = constants(neuron)
        before, now = may_spike
        z = before * spike(state["u"] - threshold)
        u = state["u"] * (1 - stop_gradient(z))
        w = rho * state["w"] + (1 - rho) * (qa * u + qb * z)
        u = alpha * u + (1 - alpha) * (current - state["w"])
        return {"u": u, "w": w}, now * spike(u - threshold)

    return Cell(init, zeros_state("u", "w"), step, heterogeneous(9.5 * threshold), "ef_adlif", project=project)


def se_adlif(
    tau_u: tuple[float, float] = (5.0, 25.0),
    tau_w: tuple[float, float] = (60.0, 300.0),
    a: tuple[float, float] = (0.0, 1.0),
    b: tuple[float, float] = (0.0, 2.0),
    *,
    q: float = 120.0,
    threshold: float = 1.0,
    spike: surrogate.SpikeFn | None = None,
) -> Cell:
    """Adaptive LIF neuron discretised by symplectic Euler (Baronig et al. 2024); it oscillates.

        û[t] = α u[t-1] + (1-α) (I[t] - w[t-1])              α = exp(-1/τ_u)
        z[t] = Θ(û[t] - ϑ)
        u[t] = û[t] (1 - sg(z[t]))
        w[t] = ρ w[t-1] + (1-ρ) q (a u[t] + b z[t])          ρ = exp(-1/τ_w)

    State `u`, `w`. Neuron parameters `tau_u`, `tau_w` in [0, 1] interpolate within their ranges;
    `a` and `b` are kept in their ranges, all with straight-through gradients. An optimiser moves them on, out of their
    ranges, where they change nothing: `hyprjax.project` clips them after an update, as the authors do.

    Args:
      tau_u: range of the membrane time constant in steps, from 0.1 on.
      tau_w: range of the adaptation time constant in steps, from 0.1 on.
      a: range of the subthreshold coupling, from `-1 / q` on, below which the membrane runs away.
      b: range of the spike-triggered adaptation.
      q: common scale of `a` and `b`, so that both train at the rate of the weights.
      threshold: firing threshold ϑ.
      spike: spike function; default `surrogate.slayer()`, as in the paper.

    Returns:
      A `Cell`. Default ranges and `q` are those of the paper's ECG experiment.

    Raises:
      ValueError: a range is not `(low, high)` with `low <= high` or too low, or `threshold` or `q` is not positive.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.se_adlif()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=4, n_out=36, recurrent=True)
      >>> hj.unroll(cell, params, jnp.ones((50, 8, 4))).shape
      (50, 8, 36)

    References:
      Baronig, Ferrand, Sabathiel, Legenstein 2024, Advancing Spatio-Temporal Processing in Spiking
      Neural Networks through Adaptation, https://arxiv.org/abs/2408.07517
    """
    threshold, q = positive("se_adlif", "threshold", threshold), positive("se_adlif", "q", q)
    ranges = {"tau_u": tau_u, "tau_w": tau_w, "a": a, "b": b}
    init, constants, project = _adlif_parameters("se_adlif", ranges, q)
    spike = spike_function("se_adlif", spike or surrogate.slayer())

    def step(neuron, state, current, may_spike=ALWAYS):
        alpha, rho, qa, qb = constants(neuron)
        u = alpha * state["u"] + (1 - alpha) * (current - state["w"])
        z = may_spike[1] * spike(u - threshold)
        u = u * (1 - stop_gradient(z))
        w = rho * state["w"] + (1 - rho) * (qa * u + qb * z)
        return {"u": u, "w": w}, z

    return Cell(init, zeros_state("u", "w"), step, heterogeneous(9.5 * threshold), "se_adlif", project=project)
