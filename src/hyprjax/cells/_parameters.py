"""What the makers share: time constants, and the checks of what is known when a cell is made."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.lax import stop_gradient
from jaxtyping import Array

from hyprjax import surrogate
from hyprjax._cell import Init, InitFn, NeuronParams, ProjectFn, draw

MIN_TAU = 0.1  # steps
ALWAYS = (1.0, 1.0)  # whether a neuron may spike in the step before and in this one, see `refractory`


def drawn(**parameters: Init) -> InitFn:
    """The `init` of a model with these initial values, each drawn with a key of its own."""

    def init(key: Array, n: int) -> NeuronParams:
        keys = jax.random.split(key, len(parameters))
        return {name: draw(key, of, n) for key, (name, of) in zip(keys, parameters.items(), strict=True)}

    return init


def decay_of(tau: Array) -> Array:
    return jnp.exp(-1 / jnp.maximum(jnp.abs(tau), 1e-3))


def clip(x: Array, low: float, high: float) -> Array:
    """Clips with a straight-through gradient, so that a parameter at its bound can return."""
    return x + stop_gradient(jnp.clip(x, low, high) - x)


def keep_time_constants(*names: str) -> ProjectFn:
    """The `project` of a model that takes absolute values of its time constants."""

    def project(neuron: NeuronParams) -> NeuronParams:
        return {**neuron, **{name: jnp.maximum(jnp.abs(neuron[name]), MIN_TAU) for name in names}}

    return project


# --- what is checked when a cell is made ----------------------------------------------------------


def number_of(value: Any) -> float | None:
    """The number that `value` is, as Python's own, which leaves the dtype of arrays alone; None if it is none."""
    try:
        return float(value) if np.ndim(value) == 0 and not isinstance(value, str | bytes) else None
    except (TypeError, ValueError):
        return None


def constant(maker: str, name: str, value: Any) -> float:
    """The one number that all neurons share."""
    number = number_of(value)
    if number is None:
        raise ValueError(
            f"{maker}: {name} must be one number for all neurons, got {in_words(value)}; what differs between neurons "
            "is a neuron parameter of a cell of your own"
        )
    return number


def positive(maker: str, name: str, value: Any) -> float:
    number = constant(maker, name, value)
    if not 0 < number < np.inf:
        raise ValueError(f"{maker}: {name} must be positive and finite, got {value!r}")
    return number


def initial(
    maker: str, name: str, init: Init, low: float = -np.inf, high: float = np.inf, limits: str = ""
) -> tuple[float, float] | None:
    """Checks initial values of a neuron parameter.

    Returns:
      Their range; None for those of an initializer and traced ones, which are not known yet.
    """
    ends = init if isinstance(init, tuple) else (init,)
    if callable(init) or any(isinstance(end, Tracer) for end in ends):
        return None
    numbers = [number for end in ends if (number := number_of(end)) is not None]
    if len(numbers) < len(ends) or isinstance(init, tuple) != (len(ends) == 2):
        hint = f"; give a tuple: {name}={tuple(init)!r}" if isinstance(init, list) else ""
        raise ValueError(
            f"{maker}: {name} must be a number, a range (low, high) or an initializer (key, shape) -> array, "
            f"got {in_words(init)}{hint}"
        )
    if not np.isfinite(numbers).all():
        raise ValueError(f"{maker}: {name} must be finite, got {init!r}")
    if numbers[0] > numbers[-1]:
        raise ValueError(f"{maker}: {name} must be a range (low, high) with low <= high, got {init!r}")
    if numbers[0] < low or numbers[-1] > high:
        raise ValueError(f"{maker}: {name} must be {limits}, got {init!r}")
    return numbers[0], numbers[-1]


def spike_function(maker: str, spike: surrogate.SpikeFn) -> surrogate.SpikeFn:
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


def time_constant(maker: str, name: str, tau: Init) -> None:
    if number_of(tau) == np.inf:  # no leak at all: an integrator
        return
    initial(maker, name, tau, MIN_TAU, np.inf, f"at least {MIN_TAU} steps")


def in_words(value: Any) -> str:
    return f"an array of shape {value.shape}" if getattr(value, "shape", ()) else repr(value)
