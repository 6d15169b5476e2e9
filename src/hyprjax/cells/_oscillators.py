"""Resonate-and-fire, plain and balanced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from hyprjax import surrogate
from hyprjax._cell import Cell, Init, draw, zeros_state
from hyprjax.cells._parameters import ALWAYS, constant, initial, positive, spike_function
from hyprjax.weights import heterogeneous

MAX_ANGLE = 0.99  # radians per step: forward Euler has no stable damping from 1 on
MIN_DAMPING = 1e-4  # per step, of `rf` beyond what forward Euler takes: its memory ends after 10,000 steps


def _oscillator(
    maker: str,
    omega: Init,
    b_offset: Init,
    dt: float,
    damping: Callable[[Any], tuple[Any, Any]],
    name: str = "b_offset",
):
    """`init` and `project` of the resonate-and-fire models.

    The damping is the neuron parameter `name`; `damping` is the range of its absolute value at a frequency ω >= 0.
    """
    fastest = MAX_ANGLE / dt
    given = initial(maker, "omega", omega, 0.0, fastest, f"0 to {fastest:.4g} (0.99 / dt), or forward Euler diverges")
    top = given[1] if given else 0.0
    low, high = damping(top)
    limits = f"{low:.4g} to {high:.4g} where omega is {top:g} and dt is {dt:g}, or forward Euler diverges"
    initial(maker, "b_offset", b_offset, low, high, limits)

    def init(key, n):
        key_omega, key_b = jax.random.split(key)
        return {"omega": draw(key_omega, omega, n), name: draw(key_b, b_offset, n)}

    def project(neuron):
        omega = jnp.minimum(jnp.abs(neuron["omega"]), fastest)
        return {**neuron, "omega": omega, name: jnp.clip(jnp.abs(neuron[name]), *damping(omega))}

    return init, project


def _undamped(omega: Any, dt: float) -> Any:
    """The real part at which the factor `sqrt(1 - (dt ω)²) + i dt ω` of a forward Euler step has modulus one."""
    return (1 - (dt * omega) ** 2) ** 0.5


def _rotate(u: Array, v: Array, omega: Array, b: Array, current: Array, dt: float) -> dict[str, Array]:
    """A forward Euler step of the damped oscillator `x' = (b + iω) x + I`, `x = u + iv`."""
    return {"u": u + dt * (b * u - omega * v + current), "v": v + dt * (omega * u + b * v)}


def rf(
    omega: Init = (5.0, 10.0),
    b_offset: Init = (1.0, 3.0),
    *,
    dt: float = 0.01,
    threshold: float = 1.0,
    spike: surrogate.SpikeFn | None = None,
) -> Cell:
    """Resonate-and-fire neuron without reset (Izhikevich 2001; the baseline of Higuchi et al. 2024).

        u[t] = u[t-1] + dt (-|b| u[t-1] - |ω| v[t-1] + I[t])
        v[t] = v[t-1] + dt (|ω| u[t-1] - |b| v[t-1])
        z[t] = Θ(u[t] - ϑ)

    A step multiplies `u + iv` by `1 + dt (-|b| + i |ω|)`. The model is stable, with that below one in modulus, for
    `dt |ω| < 1` and

        dt ω² / (1 + r) < |b| < (1 + r) / dt                r = sqrt(1 - (dt ω)²)

    `hyprjax.project` keeps `dt |ω|` up to 0.99 and `|b|` inside by `1e-4 / dt`. `brf` adds the lower bound itself.
    State `u`, `v`; neuron parameters `omega` (rad per time unit) and `b`, the damping.

    Args:
      omega: initial angular frequency ω, from 0 to `0.99 / dt`.
      b_offset: initial damping |b|, within its bounds for every ω of the range.
      dt: length of a step in time units.
      threshold: firing threshold ϑ.
      spike: spike function; default `surrogate.double_gaussian()`, as in Higuchi et al.

    Returns:
      A `Cell`. Default ranges are those of `brf`, but for the least damping, twice what ω = 10 needs.

    Raises:
      ValueError: `dt` or `threshold` is not positive, or `omega` or `b_offset` is out of range.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.rf(omega=(3.0, 5.0), b_offset=(1.0, 2.0))
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=4, n_out=36, recurrent=True)
      >>> hj.unroll(cell, params, jnp.ones((50, 8, 4))).shape
      (50, 8, 36)

    References:
      Izhikevich 2001, Resonate-and-fire neurons, https://doi.org/10.1016/S0893-6080(01)00078-8;
      Higuchi, Kairat, Bohté, Otte 2024, https://arxiv.org/abs/2402.14603
    """
    dt, threshold = positive("rf", "dt", dt), positive("rf", "threshold", threshold)
    spike = spike_function("rf", spike or surrogate.double_gaussian())

    def damping(omega):
        undamped = _undamped(omega, dt)
        least = dt * omega * omega / (1 + undamped)  # (1 - undamped) / dt without its rounding
        return least + MIN_DAMPING / dt, (1 + undamped - MIN_DAMPING) / dt

    def step(neuron, state, current, may_spike=ALWAYS):
        omega, b = jnp.abs(neuron["omega"]), -jnp.abs(neuron["b"])
        state = _rotate(state["u"], state["v"], omega, b, current, dt)
        return state, may_spike[1] * spike(state["u"] - threshold)

    init, project = _oscillator("rf", omega, b_offset, dt, damping, "b")
    # Without a reset resonance is all or nothing; gains further apart keep a layer between silent and saturated.
    weights = heterogeneous(0.21 * threshold / dt, spread=64.0)
    return Cell(init, zeros_state("u", "v"), step, weights, "rf", project=project)


def brf(
    omega: Init = (5.0, 10.0),
    b_offset: Init = (0.0, 3.0),
    *,
    dt: float = 0.01,
    threshold: float = 1.0,
    gamma: float = 0.9,
    spike: surrogate.SpikeFn | None = None,
) -> Cell:
    """Balanced resonate-and-fire neuron (Higuchi et al. 2024): a damped oscillator that spikes.

        p(ω) = (-1 + sqrt(1 - (dt ω)²)) / dt                 divergence boundary
        b[t] = p(|ω|) - |b'| - q[t-1]                        smooth reset
        u[t] = u[t-1] + dt (b[t] u[t-1] - |ω| v[t-1] + I[t])
        v[t] = v[t-1] + dt (|ω| u[t-1] + b[t] v[t-1])
        z[t] = Θ(u[t] - ϑ - q[t-1])                          relative refractoriness
        q[t] = γ q[t-1] + z[t]

    At the boundary, `b' + q = 0`, an oscillation neither grows nor decays, and up to `b' + q = 2 r / dt`,
    `r = sqrt(1 - (dt ω)²)`, it does not grow. `hyprjax.project` keeps `dt |ω|` up to 0.99 and `|b'|` up to half of
    that, `r / dt`: at the default `dt` and `gamma` no input makes a neuron diverge then.
    State `u`, `v`, `q`; neuron parameters `omega` (rad per time unit) and `b_offset`.

    Args:
      omega: initial angular frequency ω, from 0 to `0.99 / dt`.
      b_offset: initial damping offset b' below the divergence boundary, from 0 to `r / dt` for every ω of the range.
      dt: length of a step in time units.
      threshold: firing threshold ϑ.
      gamma: decay of the refractory variable per step, in [0, 1).
      spike: spike function; default `surrogate.double_gaussian()`, as in the paper.

    Returns:
      A `Cell`. Default ranges are the paper's code's; its ECG experiment uses ω in (3, 5), b' in (0.1, 1).

    Raises:
      ValueError: `dt` or `threshold` is not positive, `gamma` is outside [0, 1), or `omega` or `b_offset` is out of
        range.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.brf(omega=(3.0, 5.0), b_offset=(0.1, 1.0))
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=4, n_out=36, recurrent=True)
      >>> hj.unroll(cell, params, jnp.ones((50, 8, 4))).shape
      (50, 8, 36)

    References:
      Higuchi, Kairat, Bohté, Otte 2024, Balanced Resonate-and-Fire Neurons,
      https://arxiv.org/abs/2402.14603
    """
    dt, threshold = positive("brf", "dt", dt), positive("brf", "threshold", threshold)
    gamma = constant("brf", "gamma", gamma)
    if not 0 <= gamma < 1:
        raise ValueError(f"brf: gamma must be in [0, 1), got {gamma!r}")
    spike = spike_function("brf", spike or surrogate.double_gaussian())

    def step(neuron, state, current, may_spike=ALWAYS):
        u, v, q = state["u"], state["v"], state["q"]
        omega, b_offset = jnp.abs(neuron["omega"]), jnp.abs(neuron["b_offset"])
        # The floor keeps value and gradient finite for a frequency that training pushes past 1 / dt.
        boundary = (jnp.sqrt(jnp.maximum(1 - jnp.square(dt * omega), 1e-6)) - 1) / dt
        b = boundary - b_offset - q
        state = _rotate(u, v, omega, b, current, dt)
        z = may_spike[1] * spike(state["u"] - threshold - q)
        return {**state, "q": gamma * q + z}, z

    # Stable is b' + q up to twice this: half is left to q.
    init, project = _oscillator("brf", omega, b_offset, dt, lambda omega: (0.0, _undamped(omega, dt) / dt))
    return Cell(init, zeros_state("u", "v", "q"), step, heterogeneous(0.7 * threshold / dt), "brf", project=project)
