"""Neurons with an upstroke of their own, and with conductances; voltages in units of the way from rest to threshold."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from hyprjax import surrogate
from hyprjax._cell import Cell, Init, zeros_state
from hyprjax.cells._parameters import (
    ALWAYS,
    constant,
    decay_of,
    drawn,
    initial,
    keep_time_constants,
    positive,
    spike_function,
    time_constant,
)
from hyprjax.weights import heterogeneous

REST, SPAN = -70.0, 100.0  # mV, of `izhikevich`: rest for b = 0.2, and from there to the peak of a spike
FLOOR = -0.3  # of the same, -100 mV: below, half a step of forward Euler is unstable


def adex(
    tau: Init = 9.37,
    tau_w: Init = 144.0,
    a: Init = 0.133,
    b: Init = 0.133,
    *,
    delta: float = 0.099,
    v_reset: float = 0.0,
    spike: surrogate.SpikeFn | None = None,
) -> Cell:
    """Adaptive exponential integrate-and-fire neuron (Brette & Gerstner 2005).

        v̂[t] = α v[t-1] + (1-α) (Δ exp((v[t-1] - 1) / Δ) - w[t-1] + I[t])     α = exp(-1/|τ|)
        z[t] = Θ(v̂[t] - v_p)                                                  v_p = 1 + 5 Δ
        v[t] = min(v̂[t], v_p) (1 - sg(z[t])) + v_r sg(z[t])
        w[t] = ρ w[t-1] + (1-ρ) a v[t-1] + b z[t]                             ρ = exp(-1/|τ_w|)

    Voltages are `(V - E_L) / (V_T - E_L)`: rest is zero and the upstroke begins at one. Currents are in units of
    `g_L (V_T - E_L)`. A spike is cut off at `v_p`, from where the upstroke takes less than a step; that bounds the
    exponential, too. State `v`, `w`; neuron parameters `tau`, `tau_w`, `a`, `b`.

    Args:
      tau: initial membrane time constant C / g_L in steps, at least 0.1.
      tau_w: initial adaptation time constant in steps, at least 0.1.
      a: initial subthreshold adaptation, in units of g_L, at least -1.
      b: initial spike-triggered adaptation, in units of `g_L (V_T - E_L)`.
      delta: slope factor Δ > 0, the sharpness of the upstroke.
      v_reset: voltage after a spike, below v_p; above one makes bursts.
      spike: spike function of `v̂ - v_p`; default `surrogate.fast_sigmoid(slope=2.0)`, as wide as the last steps of an
        upstroke are long.

    Returns:
      A `Cell`. Defaults are the paper's at steps of 1 ms: C = 281 pF, g_L = 30 nS, E_L = -70.6 mV, V_T = -50.4 mV,
      Δ_T = 2 mV, τ_w = 144 ms, a = 4 nS, b = 80.5 pA, reset to E_L.

    Raises:
      ValueError: a time constant, `a`, `delta` or `v_reset` is out of range.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.adex(tau_w=(50.0, 200.0))
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=2, n_out=3, recurrent=True)
      >>> hj.unroll(cell, params, jnp.ones((50, 2))).shape
      (50, 3)

    References:
      Brette, Gerstner 2005, Adaptive Exponential Integrate-and-Fire Model as an Effective Description of Neuronal
      Activity, https://doi.org/10.1152/jn.00686.2005
    """
    delta, v_reset = positive("adex", "delta", delta), constant("adex", "v_reset", v_reset)
    peak = 1 + 5 * delta
    if not v_reset < peak:
        raise ValueError(f"adex: v_reset must be below the peak 1 + 5 delta = {peak:g}, got {v_reset!r}")
    time_constant("adex", "tau", tau)
    time_constant("adex", "tau_w", tau_w)
    initial("adex", "a", a, -1.0, np.inf, "at least -1, or the membrane runs away")
    initial("adex", "b", b)
    spike = spike_function("adex", spike or surrogate.fast_sigmoid(slope=2.0))

    def step(neuron, state, current, may_spike=ALWAYS):
        v, w = state["v"], state["w"]
        alpha, rho = decay_of(neuron["tau"]), decay_of(neuron["tau_w"])
        w_next = rho * w + (1 - rho) * neuron["a"] * v
        v = alpha * v + (1 - alpha) * (delta * jnp.exp((v - 1) / delta) - w + current)
        z = may_spike[1] * spike(v - peak)
        v = jnp.minimum(v, peak)
        return {"v": v + stop_gradient(z) * (v_reset - v), "w": w_next + neuron["b"] * z}, z

    def project(neuron):
        return {**keep_time_constants("tau", "tau_w")(neuron), "a": jnp.maximum(neuron["a"], -1.0)}

    init, rest = drawn(tau=tau, tau_w=tau_w, a=a, b=b), zeros_state("v", "w")
    return Cell(init, rest, step, heterogeneous(20.0), "adex", project=project)


def izhikevich(
    a: Init = 0.02,
    b: Init = 0.2,
    c: Init = -65.0,
    d: Init = 8.0,
    *,
    spike: surrogate.SpikeFn | None = None,
) -> Cell:
    """Izhikevich's simple model of spiking neurons (Izhikevich 2003), in two half steps of 0.5 ms as published.

        V' = 0.04 V² + 5 V + 140 - U + I          in mV and ms
        U' = a (b V - U)
        V ← c, U ← U + d                          at a spike, V = 30 mV

    For float32 and for optimisers, state, currents and parameters are in units of 100 mV from a rest of -70 mV on:
    `v = (V + 70) / 100`, `u = (U + 14) / 100`, which is the same model,

        v ← v + (4 v² - 0.6 v - u + I[t]) / 2     twice, kept within -0.3 and 1
        u ← u + a (b (v - 0.7) + 0.14 - u)
        z[t] = Θ(v̂[t] - 1)                        v̂ is v before it is kept within
        v[t] = v (1 - sg(z[t])) + c sg(z[t]),     u[t] = u + d z[t]

    so that a published current of 10 is 0.1. That v is cut off at the peak of a spike keeps the overshoot of forward
    Euler out of u; below -100 mV forward Euler is unstable. State `v`, `u`; neuron parameters `a`, `b`, `c`, `d`, the
    latter two in the same units, `(c + 70) / 100` and `d / 100`.

    Args:
      a: initial rate of the recovery variable per step, from 0 to 1.
      b: initial sensitivity of the recovery variable.
      c: initial reset in mV, from -100 to 30.
      d: initial jump of the recovery variable at a spike, in mV per ms.
      spike: spike function; default `surrogate.fast_sigmoid(slope=2.0)`, as wide as the last steps of an upstroke are
        long.

    Returns:
      A `Cell`. Defaults are the paper's regular spiking neuron. Others of the paper: intrinsically bursting c = -55,
      d = 4; chattering c = -50, d = 2; fast spiking a = 0.1, d = 2; low-threshold spiking b = 0.25, d = 2; resonator
      a = 0.1, b = 0.26, d = 2.

    Raises:
      ValueError: `a` or `c` is out of range, or a parameter is not finite.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.izhikevich(a=(0.02, 0.1), d=(2.0, 8.0))
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=2, n_out=3, recurrent=True)
      >>> hj.unroll(cell, params, jnp.ones((50, 2))).shape
      (50, 3)

    References:
      Izhikevich 2003, Simple Model of Spiking Neurons, https://doi.org/10.1109/TNN.2003.820440
    """
    initial("izhikevich", "a", a, 0.0, 1.0, "from 0 to 1 per step")
    initial("izhikevich", "b", b)
    initial("izhikevich", "c", c, REST + FLOOR * SPAN, REST + SPAN, "from -100 to 30 mV")
    initial("izhikevich", "d", d)
    spike = spike_function("izhikevich", spike or surrogate.fast_sigmoid(slope=2.0))

    published = drawn(a=a, b=b, c=c, d=d)

    def half_step(v, u, current):
        return v + (4 * v * v - 0.6 * v - u + current) / 2

    def step(neuron, state, current, may_spike=ALWAYS):
        v, u = state["v"], state["u"]
        v = half_step(jnp.clip(half_step(v, u, current), FLOOR, 1.0), u, current)
        z = may_spike[1] * spike(v - 1)
        v = jnp.clip(v, FLOOR, 1.0)
        u = u + neuron["a"] * (neuron["b"] * (v - 0.7) + 0.14 - u)
        return {"v": v + stop_gradient(z) * (neuron["c"] - v), "u": u + neuron["d"] * z}, z

    def init(key, n):
        neuron = published(key, n)
        return {**neuron, "c": (neuron["c"] - REST) / SPAN, "d": neuron["d"] / SPAN}

    def project(neuron):
        return {**neuron, "a": jnp.clip(neuron["a"], 0.0, 1.0), "c": jnp.clip(neuron["c"], FLOOR, 1.0)}

    return Cell(init, zeros_state("v", "u"), step, heterogeneous(0.6), "izhikevich", project=project)


def coba_lif(
    tau: Init = 20.0,
    tau_exc: Init = 5.0,
    tau_inh: Init = 10.0,
    *,
    e_exc: float = 6.0,
    e_inh: float = -2.0,
    threshold: float = 1.0,
    spike: surrogate.SpikeFn | None = None,
) -> Cell:
    """Leaky integrate-and-fire neuron with excitatory and inhibitory conductances (Vogels & Abbott 2005).

        g_x[t] = κ_x g_x[t-1] + max(I_x[t], 0)                                κ_x = exp(-1/|τ_x|),  x = exc, inh
        G[t] = 1 + g_exc[t] + g_inh[t]
        E[t] = (g_exc[t] E_exc + g_inh[t] E_inh) / G[t]
        v̂[t] = E[t] + (v[t-1] - E[t]) exp(-G[t]/|τ|)
        z[t] = Θ(v̂[t] - ϑ)
        v[t] = v̂[t] (1 - sg(z[t]))

    Voltages are distances from rest in units of that of the threshold, conductances are in units of the leak. A layer
    has a current for each of the ports `exc` and `inh`, and one array of inputs drives both. What a conductance gets is
    cut off at zero: no synapse closes channels. With weights that are not negative and spikes as inputs this is the
    published model; the initial draw is of both signs, so keep signs with `jnp.abs` around `w_in` and `w_rec` before
    `unroll` where they matter. State `g_exc`, `g_inh`, `v`; neuron parameters `tau`, `tau_exc`, `tau_inh`.

    Args:
      tau: initial membrane time constant at rest in steps, at least 0.1.
      tau_exc: initial time constant of the excitatory conductance in steps, at least 0.1.
      tau_inh: initial time constant of the inhibitory conductance in steps, at least 0.1.
      e_exc: reversal potential of excitation, above the threshold.
      e_inh: reversal potential of inhibition, below the threshold.
      threshold: firing threshold ϑ > 0.
      spike: spike function; default `surrogate.fast_sigmoid()`.

    Returns:
      A `Cell`. Defaults are the paper's at steps of 1 ms: rest and reset -60 mV, threshold -50 mV, reversal at 0 mV and
      -80 mV; its refractory period of 5 ms is `hyprjax.refractory(coba_lif(), 5)`.

    Raises:
      ValueError: a time constant, `threshold` or a reversal potential is out of range.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.coba_lif()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in={"exc": 8, "inh": 2}, n_out=3)
      >>> hj.unroll(cell, params, {"exc": jnp.ones((50, 8)), "inh": jnp.ones((50, 2))}).shape
      (50, 3)

    References:
      Vogels, Abbott 2005, Signal Propagation and Logic Gating in Networks of Integrate-and-Fire Neurons,
      https://doi.org/10.1523/JNEUROSCI.3508-05.2005
    """
    threshold = positive("coba_lif", "threshold", threshold)
    e_exc, e_inh = constant("coba_lif", "e_exc", e_exc), constant("coba_lif", "e_inh", e_inh)
    if not e_inh < threshold < e_exc < np.inf or not np.isfinite(e_inh):
        raise ValueError(f"coba_lif: e_inh < threshold < e_exc is needed, got {e_inh!r}, {threshold!r} and {e_exc!r}")
    taus = {"tau": tau, "tau_exc": tau_exc, "tau_inh": tau_inh}
    for name, of in taus.items():
        time_constant("coba_lif", name, of)
    spike = spike_function("coba_lif", spike or surrogate.fast_sigmoid())

    def step(neuron, state, current, may_spike=ALWAYS):
        g_exc = decay_of(neuron["tau_exc"]) * state["g_exc"] + jax.nn.relu(current["exc"])
        g_inh = decay_of(neuron["tau_inh"]) * state["g_inh"] + jax.nn.relu(current["inh"])
        total = 1 + g_exc + g_inh
        drive = (g_exc * e_exc + g_inh * e_inh) / total
        v = drive + (state["v"] - drive) * decay_of(neuron["tau"] / total)
        z = may_spike[1] * spike(v - threshold)
        return {"g_exc": g_exc, "g_inh": g_inh, "v": v * (1 - stop_gradient(z))}, z

    rest, weights = zeros_state("g_exc", "g_inh", "v"), heterogeneous(0.6 * threshold)
    project = keep_time_constants(*taus)
    return Cell(drawn(**taus), rest, step, weights, "coba_lif", project=project, ports=("exc", "inh"))
