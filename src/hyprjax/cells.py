"""The neuron models, one section each: equations, source, maker.

Time is in steps wherever nothing else is said: a time constant of 20 is 20 steps. A parameter's
initial value is a number (the same for all neurons), a `(low, high)` range (drawn uniformly) or an
initializer `(key, shape) -> array`. `z[t]` is the spike, `I[t]` the synaptic current,
`Θ` the spike function with its surrogate derivative, `sg` a stopped gradient.

What is known of a model when it is made is checked then; `Cell.project` keeps training inside the same bounds. A time
constant is at least 0.1 steps: the decay is 5e-5 there, no memory at all, and has a gradient yet by which it can grow.
An infinite one makes an integrator.

Input weights have the scale at which a layer fires at 1 to 20 % on spikes, on normal inputs and on pixels
(`tests/test_firing.py`): in units of the threshold, times what a step multiplies a current by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.lax import stop_gradient
from jaxtyping import Array

from hyprjax import surrogate
from hyprjax._cell import Cell, Init, NeuronParams, ProjectFn, draw, emit, zeros_state
from hyprjax.weights import heterogeneous

MIN_TAU = 0.1  # steps
MAX_ANGLE = 0.99  # radians per step, of an oscillator: forward Euler has no stable damping from 1 on
MIN_DAMPING = 1e-4  # per step, of `rf` beyond what forward Euler takes: its memory ends after 10,000 steps


def _decay(tau: Array) -> Array:
    return jnp.exp(-1 / jnp.maximum(jnp.abs(tau), 1e-3))


def _clip(x: Array, low: float, high: float) -> Array:
    """Clips with a straight-through gradient, so that a parameter at its bound can return."""
    return x + stop_gradient(jnp.clip(x, low, high) - x)


def _keep_time_constants(*names: str) -> ProjectFn:
    """The `project` of a model that takes absolute values of its time constants."""

    def project(neuron: NeuronParams) -> NeuronParams:
        return {**neuron, **{name: jnp.maximum(jnp.abs(neuron[name]), MIN_TAU) for name in names}}

    return project


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
    given = _initial(maker, "omega", omega, 0.0, fastest, f"0 to {fastest:.4g} (0.99 / dt), or forward Euler diverges")
    top = given[1] if given else 0.0
    low, high = damping(top)
    limits = f"{low:.4g} to {high:.4g} where omega is {top:g} and dt is {dt:g}, or forward Euler diverges"
    _initial(maker, "b_offset", b_offset, low, high, limits)

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


# --- leaky integrate-and-fire ---------------------------------------------------------------------


def lif(
    tau: Init = 20.0,
    *,
    threshold: float = 0.6,
    reset: str = "subtract",
    spike: surrogate.SpikeFn | None = None,
    detach_reset: bool = True,
) -> Cell:
    """Leaky integrate-and-fire neuron (Bellec et al. 2020).

        v[t] = α v[t-1] + I[t] - ϑ sg(z[t-1])        α = exp(-1/|τ|)
        z[t] = Θ((v[t] - ϑ) / ϑ)

    With `reset="zero"`, the first line is `v[t] = α v[t-1] (1 - sg(z[t-1])) + I[t]`. State `v`; neuron parameter `tau`.

    Args:
      tau: initial membrane time constant in steps, at least 0.1.
      threshold: firing threshold ϑ > 0.
      reset: what a spike does to the membrane: `"subtract"` the threshold, as in the paper, or put it to `"zero"`,
        as neuromorphic hardware and NIR have it.
      spike: spike function; default `surrogate.triangular()`, dampening 0.3, as in the paper.
      detach_reset: whether no gradient flows through the reset, as in the paper.

    Returns:
      A `Cell`. Defaults are those of the paper's evidence accumulation task.

    Raises:
      ValueError: `tau` or `threshold` is out of range, or `reset` is neither `"subtract"` nor `"zero"`.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.lif(tau=10.0)
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=2, n_out=3)
      >>> hj.unroll(cell, params, jnp.ones((50, 2))).shape
      (50, 3)

    References:
      Bellec et al. 2020, A solution to the learning dilemma for recurrent networks of spiking
      neurons, https://doi.org/10.1038/s41467-020-17236-y
    """
    threshold = _positive("lif", "threshold", threshold)
    _time_constant("lif", "tau", tau)
    if reset not in ("subtract", "zero"):
        raise ValueError(f'lif: reset must be "subtract" or "zero", got {reset!r}')
    spike = _spike_function("lif", spike or surrogate.triangular())
    reset_gradient = stop_gradient if detach_reset else lambda z: z

    def step(neuron, state, current):
        v, decay = state["v"], _decay(neuron["tau"])
        z_previous = reset_gradient(spike((v - threshold) / threshold))
        kept = decay * v - threshold * z_previous if reset == "subtract" else decay * v * (1 - z_previous)
        v = kept + current
        return {"v": v}, spike((v - threshold) / threshold)

    init = lambda key, n: {"tau": draw(key, tau, n)}  # noqa: E731
    constants = (("threshold", threshold), ("reset", reset))
    return Cell(
        init, zeros_state("v"), step, heterogeneous(0.95 * threshold), "lif", constants, _keep_time_constants("tau")
    )


# --- current-based leaky integrate-and-fire -------------------------------------------------------


def cuba_lif(
    tau: Init = 20.0,
    tau_syn: Init = 10.0,
    *,
    threshold: float = 1.0,
    spike: surrogate.SpikeFn | None = None,
) -> Cell:
    """Leaky integrate-and-fire neuron with exponential synaptic currents, reset to zero (Cramer et al. 2020).

        i[t] = κ i[t-1] + I[t]                               κ = exp(-1/|τ_syn|)
        v̂[t] = α v[t-1] + (1-α) i[t]                         α = exp(-1/|τ|)
        z[t] = Θ(v̂[t] - ϑ)
        v[t] = v̂[t] (1 - sg(z[t]))

    State `i`, `v`; neuron parameters `tau`, `tau_syn`. The paper's membrane sees the current one step later.

    Args:
      tau: initial membrane time constant in steps, at least 0.1.
      tau_syn: initial synaptic time constant in steps, at least 0.1.
      threshold: firing threshold ϑ > 0.
      spike: spike function; default `surrogate.fast_sigmoid()`, as in the paper.

    Returns:
      A `Cell`. The default time constants are the paper's 20 and 10 ms at steps of 1 ms.

    Raises:
      ValueError: a time constant or `threshold` is out of range.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.cuba_lif(tau_syn=(5.0, 15.0))
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=2, n_out=3, recurrent=True)
      >>> hj.unroll(cell, params, jnp.ones((50, 2))).shape
      (50, 3)

    References:
      Cramer, Stradmann, Schemmel, Zenke 2020, The Heidelberg Spiking Data Sets for the Systematic
      Evaluation of Spiking Neural Networks, https://arxiv.org/abs/1910.07407
    """
    threshold = _positive("cuba_lif", "threshold", threshold)
    _time_constant("cuba_lif", "tau", tau)
    _time_constant("cuba_lif", "tau_syn", tau_syn)
    spike = _spike_function("cuba_lif", spike or surrogate.fast_sigmoid())

    def step(neuron, state, current):
        i = _decay(neuron["tau_syn"]) * state["i"] + current
        alpha = _decay(neuron["tau"])
        v = alpha * state["v"] + (1 - alpha) * i
        z = spike(v - threshold)
        return {"i": i, "v": v * (1 - stop_gradient(z))}, z

    def init(key, n):
        keys = jax.random.split(key)
        return {"tau": draw(keys[0], tau, n), "tau_syn": draw(keys[1], tau_syn, n)}

    constants, project = (("threshold", threshold),), _keep_time_constants("tau", "tau_syn")
    return Cell(init, zeros_state("i", "v"), step, heterogeneous(2.5 * threshold), "cuba_lif", constants, project)


# --- adaptive leaky integrate-and-fire ------------------------------------------------------------


def alif(
    tau: Init = 20.0,
    tau_a: Init = 200.0,
    beta: Init = 0.174,
    *,
    threshold: float = 0.6,
    spike: surrogate.SpikeFn | None = None,
    detach_reset: bool = True,
) -> Cell:
    """Leaky integrate-and-fire neuron with an adaptive threshold (Bellec et al. 2018, 2020).

        a[t] = ρ a[t-1] + z[t-1]                     ρ = exp(-1/|τ_a|)
        v[t] = α v[t-1] + I[t] - ϑ sg(z[t-1])        α = exp(-1/|τ|)
        z[t] = Θ((v[t] - ϑ - β a[t]) / ϑ)

    State `v`, `a`; neuron parameters `tau`, `tau_a`, `beta`.

    Args:
      tau: initial membrane time constant in steps, at least 0.1.
      tau_a: initial adaptation time constant in steps, at least 0.1; near the memory the task needs.
      beta: initial threshold increase per spike; the default is the paper's
        1.7 (1 - ρ) / (1 - α) at the default time constants. A mixed population as in the paper
        (some neurons without adaptation) passes an initializer.
      threshold: baseline threshold ϑ > 0.
      spike: spike function; default `surrogate.triangular()`, dampening 0.3, as in the paper.
      detach_reset: whether no gradient flows through the reset, as in the paper.

    Returns:
      A `Cell`.

    Raises:
      ValueError: a time constant, `beta` or `threshold` is out of range.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.alif(tau_a=(100.0, 300.0))
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=2, n_out=3, recurrent=True)
      >>> hj.unroll(cell, params, jnp.ones((50, 2))).shape
      (50, 3)

    References:
      Bellec et al. 2018, Long short-term memory and learning-to-learn in networks of spiking
      neurons, https://arxiv.org/abs/1803.09574; Bellec et al. 2020,
      https://doi.org/10.1038/s41467-020-17236-y
    """
    threshold = _positive("alif", "threshold", threshold)
    _time_constant("alif", "tau", tau)
    _time_constant("alif", "tau_a", tau_a)
    _initial("alif", "beta", beta)
    spike = _spike_function("alif", spike or surrogate.triangular())
    reset_gradient = stop_gradient if detach_reset else lambda z: z

    def fire(neuron, v, a):
        return spike((v - threshold - neuron["beta"] * a) / threshold)

    def step(neuron, state, current):
        v, a = state["v"], state["a"]
        z_previous = fire(neuron, v, a)
        a = _decay(neuron["tau_a"]) * a + z_previous
        v = _decay(neuron["tau"]) * v + current - threshold * reset_gradient(z_previous)
        return {"v": v, "a": a}, fire(neuron, v, a)

    def init(key, n):
        keys = jax.random.split(key, 3)
        return {"tau": draw(keys[0], tau, n), "tau_a": draw(keys[1], tau_a, n), "beta": draw(keys[2], beta, n)}

    project = _keep_time_constants("tau", "tau_a")
    return Cell(init, zeros_state("v", "a"), step, heterogeneous(1.4 * threshold), "alif", project=project)


# --- adaptive leaky integrate-and-fire with subthreshold coupling: Euler-forward and symplectic Euler -----


def _adlif_parameters(maker: str, ranges: dict[str, tuple[float, float]], q: float):
    """What both adLIF discretisations share: `init`, `neuron -> α, ρ, q a, q b`, and `project`."""
    for name, bounds in ranges.items():
        if not isinstance(bounds, tuple):
            hint = f"; give a tuple: {name}={tuple(bounds)!r}" if isinstance(bounds, list) else ""
            raise ValueError(f"{maker}: {name} must be a range (low, high) with low <= high, got {bounds!r}{hint}")
    _time_constant(maker, "tau_u", ranges["tau_u"])
    _time_constant(maker, "tau_w", ranges["tau_w"])
    _initial(maker, "a", ranges["a"], -1 / q, np.inf, f"at least -1 / q = {-1 / q:.4g}, or the membrane runs away")
    _initial(maker, "b", ranges["b"])
    allowed = ranges | {"tau_u": (0.0, 1.0), "tau_w": (0.0, 1.0)}

    def init(key, n):
        keys = jax.random.split(key, len(allowed))
        return {name: draw(key, bounds, n) for key, (name, bounds) in zip(keys, allowed.items(), strict=True)}

    def project(neuron):
        return {**neuron, **{name: jnp.clip(neuron[name], *bounds) for name, bounds in allowed.items()}}

    def constants(neuron):
        def decay(name):
            low, high = ranges[name]
            return jnp.exp(-1 / (low + (high - low) * _clip(neuron[name], 0.0, 1.0)))

        a, b = (q * _clip(neuron[name], *ranges[name]) for name in ("a", "b"))
        return decay("tau_u"), decay("tau_w"), a, b

    return init, constants, project


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
    threshold, q = _positive("ef_adlif", "threshold", threshold), _positive("ef_adlif", "q", q)
    ranges = {"tau_u": tau_u, "tau_w": tau_w, "a": a, "b": b}
    init, constants, project = _adlif_parameters("ef_adlif", ranges, q)
    spike = _spike_function("ef_adlif", spike or surrogate.slayer())

    def step(neuron, state, current):
        alpha, rho, qa, qb = constants(neuron)
        z = spike(state["u"] - threshold)
        u = state["u"] * (1 - stop_gradient(z))
        w = rho * state["w"] + (1 - rho) * (qa * u + qb * z)
        u = alpha * u + (1 - alpha) * (current - state["w"])
        return {"u": u, "w": w}, spike(u - threshold)

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
    threshold, q = _positive("se_adlif", "threshold", threshold), _positive("se_adlif", "q", q)
    ranges = {"tau_u": tau_u, "tau_w": tau_w, "a": a, "b": b}
    init, constants, project = _adlif_parameters("se_adlif", ranges, q)
    spike = _spike_function("se_adlif", spike or surrogate.slayer())

    def step(neuron, state, current):
        alpha, rho, qa, qb = constants(neuron)
        u = alpha * state["u"] + (1 - alpha) * (current - state["w"])
        z = spike(u - threshold)
        u = u * (1 - stop_gradient(z))
        w = rho * state["w"] + (1 - rho) * (qa * u + qb * z)
        return {"u": u, "w": w}, z

    return Cell(init, zeros_state("u", "w"), step, heterogeneous(9.5 * threshold), "se_adlif", project=project)


# --- resonate-and-fire ----------------------------------------------------------------------------


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
    dt, threshold = _positive("rf", "dt", dt), _positive("rf", "threshold", threshold)
    spike = _spike_function("rf", spike or surrogate.double_gaussian())

    def damping(omega):
        undamped = _undamped(omega, dt)
        least = dt * omega * omega / (1 + undamped)  # (1 - undamped) / dt without its rounding
        return least + MIN_DAMPING / dt, (1 + undamped - MIN_DAMPING) / dt

    def step(neuron, state, current):
        omega, b = jnp.abs(neuron["omega"]), -jnp.abs(neuron["b"])
        state = _rotate(state["u"], state["v"], omega, b, current, dt)
        return state, spike(state["u"] - threshold)

    init, project = _oscillator("rf", omega, b_offset, dt, damping, "b")
    # Without a reset resonance is all or nothing; gains further apart keep a layer between silent and saturated.
    weights = heterogeneous(0.21 * threshold / dt, spread=64.0)
    return Cell(init, zeros_state("u", "v"), step, weights, "rf", project=project)


# --- balanced resonate-and-fire -------------------------------------------------------------------


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
    dt, threshold = _positive("brf", "dt", dt), _positive("brf", "threshold", threshold)
    gamma = _constant("brf", "gamma", gamma)
    if not 0 <= gamma < 1:
        raise ValueError(f"brf: gamma must be in [0, 1), got {gamma!r}")
    spike = _spike_function("brf", spike or surrogate.double_gaussian())

    def step(neuron, state, current):
        u, v, q = state["u"], state["v"], state["q"]
        omega, b_offset = jnp.abs(neuron["omega"]), jnp.abs(neuron["b_offset"])
        # The floor keeps value and gradient finite for a frequency that training pushes past 1 / dt.
        boundary = (jnp.sqrt(jnp.maximum(1 - jnp.square(dt * omega), 1e-6)) - 1) / dt
        b = boundary - b_offset - q
        state = _rotate(u, v, omega, b, current, dt)
        z = spike(state["u"] - threshold - q)
        return {**state, "q": gamma * q + z}, z

    # Stable is b' + q up to twice this: half is left to q.
    init, project = _oscillator("brf", omega, b_offset, dt, lambda omega: (0.0, _undamped(omega, dt) / dt))
    return Cell(init, zeros_state("u", "v", "q"), step, heterogeneous(0.7 * threshold / dt), "brf", project=project)


# --- leaky integrator -----------------------------------------------------------------------------


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
    _time_constant("leaky_integrator", "tau", tau)

    def step(neuron, state, current):
        decay = _decay(neuron["tau"])
        v = decay * state["v"] + (1 - decay) * current
        return {"v": v}, v

    init = lambda key, n: {"tau": draw(key, tau, n)}  # noqa: E731
    return Cell(init, zeros_state("v"), step, name="leaky_integrator", project=_keep_time_constants("tau"))


# --- exponential synapses -------------------------------------------------------------------------


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
      ValueError: `tau` is out of range, `recurrent` is neither `"output"` nor `"spikes"`, or `cell` has an output of
        several parts.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.filtered(hj.lif(), tau=10.0)
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=2, n_out=3)
      >>> hj.unroll(cell, params, jnp.ones((50, 2))).shape
      (50, 3)
    """
    _time_constant("filtered", "tau", tau)
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
        decay = _decay(neuron["tau"])
        y = decay * state["y"] + (1 - decay) * z
        return {"cell": inner, "y": y}, (y, back) if recurrent == "spikes" else y

    def project(neuron):
        return _keep_time_constants("tau")(neuron) | {"cell": cell.project(neuron["cell"])}

    made = Cell(init, rest, step, cell.weights, f"filtered({cell.name})", project=project, ports=cell.ports)
    if recurrent == "spikes":
        return made._replace(sends=lambda output: output[0], feedback=lambda output: output[1])
    return made


# --- the state as an output -----------------------------------------------------------------------


def with_state(cell: Cell) -> Cell:
    """A neuron model whose state is an output, too, so that membrane potentials can be in the loss.

    `unroll` returns a pair: what it returns for `cell`, and the state after each step, a pytree of `[t, *batch, n]`
    arrays. Parameters are those of `cell`, and `w_rec` carries back what it carries there. Credit for a state is as
    exact as that for a spike.

    Args:
      cell: the neuron model.

    Returns:
      A `Cell`.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.lif()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=2, n_out=3)
      >>> spikes, state = hj.unroll(hj.with_state(cell), params, jnp.ones((50, 2)))
      >>> state["v"].shape
      (50, 3)
    """

    def step(neuron, state, current):
        state, output = cell.step(neuron, state, current)
        return state, (output, state)

    return cell._replace(
        step=step,
        name=f"with_state({cell.name})",
        sends=lambda output: (emit(cell, output[0])[0], output[1]),
        feedback=lambda output: emit(cell, output[0])[1],
    )


# --- what is checked when a cell is made ----------------------------------------------------------


def _number(value: Any) -> float | None:
    """The number that `value` is, as Python's own, which leaves the dtype of arrays alone; None if it is none."""
    try:
        return float(value) if np.ndim(value) == 0 else None
    except (TypeError, ValueError):
        return None


def _constant(maker: str, name: str, value: Any) -> float:
    """The one number that all neurons share."""
    number = _number(value)
    if number is None:
        raise ValueError(
            f"{maker}: {name} must be one number for all neurons, got {_in_words(value)}; what differs between neurons "
            "is a neuron parameter of a cell of your own"
        )
    return number


def _positive(maker: str, name: str, value: Any) -> float:
    number = _constant(maker, name, value)
    if not 0 < number < np.inf:
        raise ValueError(f"{maker}: {name} must be positive and finite, got {value!r}")
    return number


def _initial(
    maker: str, name: str, init: Init, low: float = -np.inf, high: float = np.inf, limits: str = ""
) -> tuple[float, float] | None:
    """Checks initial values of a neuron parameter.

    Returns:
      Their range; None for those of an initializer and traced ones, which are not known yet.
    """
    ends = init if isinstance(init, tuple) else (init,)
    if callable(init) or any(isinstance(end, Tracer) for end in ends):
        return None
    numbers = [number for end in ends if (number := _number(end)) is not None]
    if len(numbers) < len(ends) or isinstance(init, tuple) != (len(ends) == 2):
        hint = f"; give a tuple: {name}={tuple(init)!r}" if isinstance(init, list) else ""
        raise ValueError(
            f"{maker}: {name} must be a number, a range (low, high) or an initializer (key, shape) -> array, "
            f"got {_in_words(init)}{hint}"
        )
    if not np.isfinite(numbers).all():
        raise ValueError(f"{maker}: {name} must be finite, got {init!r}")
    if numbers[0] > numbers[-1]:
        raise ValueError(f"{maker}: {name} must be a range (low, high) with low <= high, got {init!r}")
    if numbers[0] < low or numbers[-1] > high:
        raise ValueError(f"{maker}: {name} must be {limits}, got {init!r}")
    return numbers[0], numbers[-1]


def _spike_function(maker: str, spike: surrogate.SpikeFn) -> surrogate.SpikeFn:
    """Refuses what does not take distances to threshold to spikes; `surrogate.slayer` for `surrogate.slayer()`, say."""
    distance = jax.ShapeDtypeStruct((2,), jnp.float32)
    try:
        spikes = jax.eval_shape(spike, distance)
    except Exception:
        spikes = None
    if getattr(spikes, "shape", None) != distance.shape:
        name = getattr(spike, "__name__", None)
        made = f"; call it, as in hj.surrogate.{name}()" if callable(getattr(surrogate, str(name), None)) else ""
        raise TypeError(
            f"{maker}: spike must be an element-wise function of the distance to threshold, as those of hj.surrogate "
            f"are, got {name or repr(spike)}{made}"
        )
    return spike


def _time_constant(maker: str, name: str, tau: Init) -> None:
    if _number(tau) == np.inf:  # no leak at all: an integrator
        return
    _initial(maker, name, tau, MIN_TAU, np.inf, f"at least {MIN_TAU} steps")


def _in_words(value: Any) -> str:
    return f"an array of shape {value.shape}" if getattr(value, "shape", ()) else repr(value)
