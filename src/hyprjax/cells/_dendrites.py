"""Neurons whose dendrites have a memory of their own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from hyprjax import surrogate
from hyprjax._cell import Cell, Init, draw, zeros_state
from hyprjax._checks.arguments import positive_int
from hyprjax.cells._parameters import (
    ALWAYS,
    MIN_TAU,
    clip,
    constant,
    decay_of,
    drawn,
    initial,
    positive,
    spike_function,
    time_constant,
)
from hyprjax.weights import heterogeneous


def dh_lif(
    tau: Init | None = None,
    tau_branch: Init | None = None,
    *,
    branches: int = 4,
    threshold: float = 1.0,
    spike: surrogate.SpikeFn | None = None,
) -> Cell:
    """Leaky integrate-and-fire neuron whose dendritic branches have time constants of their own (Zheng et al. 2024).

        i_d[t] = β_d i_d[t-1] + (1-β_d) I_d[t]                     β_d = exp(-1/|τ_d|),  d = 0, ..., branches - 1
        v[t] = α v[t-1] + (1-α) Σ_d i_d[t] - ϑ z[t-1]              α = exp(-1/|τ|)
        z[t] = Θ(v[t] - ϑ)

    A layer has a current for each of the ports `branch0`, `branch1` and so on, with weights of its own: one array of
    inputs is for all, and `n_in` and the inputs as dicts give each branch its own. The authors connect each branch
    to its own part of the inputs: multiply `w_in` by masks before `unroll`. As in their code, gradients flow through
    the reset. State `v`, `branch0`, ...; neuron parameters `tau` and `tau_branch`, a dict by branch.

    Args:
      tau: initial membrane time constant in steps, at least 0.1; by default drawn as the authors do, as decays
        σ(x) with x uniform in 0 to 4: 1.4 to 55 steps.
      tau_branch: initial time constants of the branches in steps, at least 0.1, drawn for each branch and neuron; by
        default as the authors do for spoken digits, with x in 2 to 6: 8 to 404 steps.
      branches: how many, at least 1.
      threshold: firing threshold ϑ > 0.
      spike: spike function; default `surrogate.double_gaussian()`, as in the authors' code.

    Returns:
      A `Cell`. Defaults are those of the authors' code for the Spiking Heidelberg Digits.

    Raises:
      ValueError: a time constant, `branches` or `threshold` is out of range.
      TypeError: `branches` is not an int.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.dh_lif(branches=2)
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in={"branch0": 5, "branch1": 3}, n_out=4)
      >>> hj.unroll(cell, params, {"branch0": jnp.ones((50, 5)), "branch1": jnp.ones((50, 3))}).shape
      (50, 4)

    References:
      Zheng et al. 2024, Temporal dendritic heterogeneity incorporated with spiking neural networks for learning
      multi-timescale dynamics, https://doi.org/10.1038/s41467-023-44614-z
    """
    threshold = positive("dh_lif", "threshold", threshold)
    ports = tuple(f"branch{d}" for d in range(positive_int("dh_lif: branches", branches)))
    tau = _of_decay(0.0, 4.0) if tau is None else tau
    tau_branch = _of_decay(2.0, 6.0) if tau_branch is None else tau_branch
    time_constant("dh_lif", "tau", tau)
    time_constant("dh_lif", "tau_branch", tau_branch)
    spike = spike_function("dh_lif", spike or surrogate.double_gaussian())

    def step(neuron, state, current, may_spike=ALWAYS):
        before, now = may_spike
        z_previous = before * spike(state["v"] - threshold)
        decays = {port: decay_of(neuron["tau_branch"][port]) for port in ports}
        arrived = {port: decays[port] * state[port] + (1 - decays[port]) * current[port] for port in ports}
        alpha = decay_of(neuron["tau"])
        v = alpha * state["v"] + (1 - alpha) * sum(arrived.values()) - threshold * z_previous
        return {"v": v, **arrived}, now * spike(v - threshold)

    def init(key, n):
        key_tau, *keys = jax.random.split(key, 1 + len(ports))
        of_branches = {port: draw(key, tau_branch, n) for key, port in zip(keys, ports, strict=True)}
        return {"tau": draw(key_tau, tau, n), "tau_branch": of_branches}

    def project(neuron):
        return jax.tree.map(lambda tau: jnp.maximum(jnp.abs(tau), MIN_TAU), neuron)

    # Branches leave of weak inputs little but their mean, so gains are further apart; one order for all branches.
    weights = heterogeneous(2.3 * threshold, spread=1024.0, shuffle=False)
    return Cell(init, zeros_state("v", *ports), step, weights, "dh_lif", project=project, ports=ports)


def _of_decay(low: float, high: float):
    """Time constants of decays σ(x), x uniform."""

    def draw_tau(key: Array, shape: tuple[int, ...]) -> Array:
        return 1 / jax.nn.softplus(-jax.random.uniform(key, shape, minval=low, maxval=high))

    return draw_tau


def two_compartment(
    beta_d: Init = 0.5,
    beta_s: Init = 0.5,
    *,
    gamma: float = 0.5,
    threshold: float = 1.0,
    spike: surrogate.SpikeFn | None = None,
) -> Cell:
    """Two-compartment leaky integrate-and-fire neuron, TC-LIF (Zhang et al. 2024): a dendrite that remembers, a soma.

        d̂[t] = d[t-1] - β_d s[t-1] + I[t]
        ŝ[t] = s[t-1] + β_s d̂[t]
        z[t] = Θ(ŝ[t] - ϑ)
        d[t] = d̂[t] - γ z[t],    s[t] = ŝ[t] - ϑ z[t]

    The soma drives the dendrite back, and nothing leaks: together they are an undamped oscillator with a period of
    `2π / arccos(1 - β_d β_s / 2)` steps, 12 at the defaults, until spikes take something away. As in the authors' code,
    gradients flow through the reset. State `d`, `s`; neuron parameters `beta_d`, `beta_s`, kept within [0, 1] with a
    straight-through gradient, where the authors have the sigmoid of a parameter.

    Args:
      beta_d: initial strength with which the soma acts on the dendrite, -β₁ of the paper, from 0 to 1.
      beta_s: initial strength with which the dendrite acts on the soma, β₂ of the paper, from 0 to 1.
      gamma: what a spike takes from the dendrite.
      threshold: firing threshold ϑ > 0, which a spike takes from the soma.
      spike: spike function; default `surrogate.triangular(gamma=1.0)`, as in the authors' code.

    Returns:
      A `Cell`. Defaults are those of the authors' feedforward network on sequential MNIST.

    Raises:
      ValueError: `beta_d`, `beta_s` or `threshold` is out of range, or `gamma` is not one number.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.two_compartment(beta_d=(0.2, 0.8))
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=2, n_out=3, recurrent=True)
      >>> hj.unroll(cell, params, jnp.ones((50, 2))).shape
      (50, 3)

    References:
      Zhang, Yang, Ma, Wu, Li, Tan 2024, TC-LIF: A Two-Compartment Spiking Neuron Model for Long-Term Sequential
      Modelling, https://arxiv.org/abs/2308.13250
    """
    threshold, gamma = positive("two_compartment", "threshold", threshold), constant("two_compartment", "gamma", gamma)
    betas = {"beta_d": beta_d, "beta_s": beta_s}
    for name, of in betas.items():
        initial("two_compartment", name, of, 0.0, 1.0, "from 0 to 1")
    spike = spike_function("two_compartment", spike or surrogate.triangular(gamma=1.0))

    def step(neuron, state, current, may_spike=ALWAYS):
        d = state["d"] - clip(neuron["beta_d"], 0.0, 1.0) * state["s"] + current
        s = state["s"] + clip(neuron["beta_s"], 0.0, 1.0) * d
        z = may_spike[1] * spike(s - threshold)
        return {"d": d - gamma * z, "s": s - threshold * z}, z

    def project(neuron):
        return {name: jnp.clip(neuron[name], 0.0, 1.0) for name in betas}

    weights = heterogeneous(0.5 * threshold)
    return Cell(drawn(**betas), zeros_state("d", "s"), step, weights, "two_compartment", project=project)
