"""Leaky integrate-and-fire: with delta synapses, with exponential ones, with an adaptive threshold."""

from __future__ import annotations

from jax.lax import stop_gradient

from hyprjax import surrogate
from hyprjax._cell import Cell, Init, draw, zeros_state
from hyprjax.cells._parameters import (
    ALWAYS,
    decay_of,
    drawn,
    initial,
    keep_time_constants,
    positive,
    spike_function,
    time_constant,
)
from hyprjax.weights import heterogeneous


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
    threshold = positive("lif", "threshold", threshold)
    time_constant("lif", "tau", tau)
    if reset not in ("subtract", "zero"):
        raise ValueError(f'lif: reset must be "subtract" or "zero", got {reset!r}')
    spike = spike_function("lif", spike or surrogate.triangular())
    reset_gradient = stop_gradient if detach_reset else lambda z: z

    def step(neuron, state, current, may_spike=ALWAYS):
        v, decay = state["v"], decay_of(neuron["tau"])
        before, now = may_spike
        z_previous = reset_gradient(before * spike((v - threshold) / threshold))
        kept = decay * v - threshold * z_previous if reset == "subtract" else decay * v * (1 - z_previous)
        v = kept + current
        return {"v": v}, now * spike((v - threshold) / threshold)

    init = lambda key, n: {"tau": draw(key, tau, n)}  # noqa: E731
    constants = (("threshold", threshold), ("reset", reset))
    return Cell(
        init, zeros_state("v"), step, heterogeneous(0.95 * threshold), "lif", constants, keep_time_constants("tau")
    )


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
    threshold = positive("cuba_lif", "threshold", threshold)
    time_constant("cuba_lif", "tau", tau)
    time_constant("cuba_lif", "tau_syn", tau_syn)
    spike = spike_function("cuba_lif", spike or surrogate.fast_sigmoid())

    def step(neuron, state, current, may_spike=ALWAYS):
        i = decay_of(neuron["tau_syn"]) * state["i"] + current
        alpha = decay_of(neuron["tau"])
        v = alpha * state["v"] + (1 - alpha) * i
        z = may_spike[1] * spike(v - threshold)
        return {"i": i, "v": v * (1 - stop_gradient(z))}, z

    init = drawn(tau=tau, tau_syn=tau_syn)
    constants, project = (("threshold", threshold),), keep_time_constants("tau", "tau_syn")
    return Cell(init, zeros_state("i", "v"), step, heterogeneous(2.5 * threshold), "cuba_lif", constants, project)


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
    threshold = positive("alif", "threshold", threshold)
    time_constant("alif", "tau", tau)
    time_constant("alif", "tau_a", tau_a)
    initial("alif", "beta", beta)
    spike = spike_function("alif", spike or surrogate.triangular())
    reset_gradient = stop_gradient if detach_reset else lambda z: z

    def fire(neuron, v, a):
        return spike((v - threshold - neuron["beta"] * a) / threshold)

    def step(neuron, state, current, may_spike=ALWAYS):
        v, a = state["v"], state["a"]
        before, now = may_spike
        z_previous = before * fire(neuron, v, a)
        a = decay_of(neuron["tau_a"]) * a + z_previous
        v = decay_of(neuron["tau"]) * v + current - threshold * reset_gradient(z_previous)
        return {"v": v, "a": a}, now * fire(neuron, v, a)

    init = drawn(tau=tau, tau_a=tau_a, beta=beta)
    project = keep_time_constants("tau", "tau_a")
    return Cell(init, zeros_state("v", "a"), step, heterogeneous(1.4 * threshold), "alif", project=project)
