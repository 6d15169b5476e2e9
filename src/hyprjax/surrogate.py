"""Spike functions: the Heaviside step forward, a surrogate derivative in every derivative.

Each maker returns a function `spike(x)` of the distance to threshold, 1 where `x > 0`, NaN where `x` is NaN and 0
elsewhere, whose derivative is replaced by the surrogate's through a `jax.custom_jvp`. NaN is handed on, in the
derivative too, so that a broken input shows in the loss instead of silencing neurons.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SpikeFn = Callable[[Float[Array, "..."]], Float[Array, "..."]]


def from_derivative(derivative: SpikeFn) -> SpikeFn:
    """Makes a spike function whose derivative at `x` is `derivative(x)`.

    Args:
      derivative: element-wise function of the distance to threshold. Where that is NaN, the derivative of the spike
        function is NaN, whatever this one says.

    Returns:
      A spike function.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from hyprjax import surrogate
      >>> spike = surrogate.from_derivative(lambda x: jnp.exp(-jnp.abs(x)))
      >>> float(spike(0.0)), float(jax.grad(spike)(0.0))
      (0.0, 1.0)
    """
    return _spike(lambda x: _hand_on_nan(x, derivative(x)))


def _spike(derivative: SpikeFn) -> SpikeFn:
    """A spike function from a derivative that is NaN at NaN by itself; looking for it again would cost time."""

    @jax.custom_jvp
    def spike(x: Float[Array, "..."]) -> Float[Array, "..."]:
        x = jnp.asarray(x)
        return _hand_on_nan(x, (x > 0).astype(x.dtype))

    @spike.defjvp
    def spike_jvp(primals, tangents):
        (x,), (dx,) = primals, tangents
        return spike(x), (derivative(x) * dx).astype(dx.dtype)  # whatever the dtype of the derivative's constants

    return spike


def _hand_on_nan(x: Array, y: Array) -> Array:
    """`y`, but NaN where `x` is NaN: a comparison with NaN is False and would end it here."""
    return jnp.where(jnp.isnan(x), jnp.nan, y)


def _normal_pdf(x: Array, sigma: float) -> Array:
    return jnp.exp(-0.5 * jnp.square(x / sigma)) / (sigma * jnp.sqrt(2 * jnp.pi).astype(x.dtype))


def double_gaussian(sigma: float = 0.5, scale: float = 6.0, height: float = 0.15, gamma: float = 0.5) -> SpikeFn:
    r"""Gaussian with negative wings, :math:`\gamma[(1+h)N(x;\sigma) - 2hN(x;s\sigma)]`.

    Args:
      sigma: width of the central Gaussian.
      scale: width of the wings in units of `sigma`.
      height: height `h` of the wings.
      gamma: overall factor.

    Returns:
      A spike function, with the defaults of Yin et al. 2021 as used for BRF by Higuchi et al. 2024.

    Examples:
      >>> import jax
      >>> from hyprjax import surrogate
      >>> round(float(jax.grad(surrogate.double_gaussian())(0.0)), 4)
      0.4388
    """
    return _spike(lambda x: gamma * ((1 + height) * _normal_pdf(x, sigma) - 2 * height * _normal_pdf(x, scale * sigma)))


def slayer(alpha: float = 5.0, c: float = 0.4) -> SpikeFn:
    r"""Two-sided exponential, :math:`\frac{c\alpha}{2}e^{-\alpha|x|}`.

    Args:
      alpha: steepness.
      c: area under the derivative.

    Returns:
      A spike function, of SLAYER's shape (Shrestha and Orchard 2018) with the defaults of Baronig et al. 2024.

    Examples:
      >>> import jax
      >>> from hyprjax import surrogate
      >>> round(float(jax.grad(surrogate.slayer())(0.0)), 4)
      1.0
    """
    return _spike(lambda x: 0.5 * c * alpha * jnp.exp(-alpha * jnp.abs(x)))


def fast_sigmoid(slope: float = 10.0) -> SpikeFn:
    r"""Derivative of a fast sigmoid, :math:`1/(1+s|x|)^2`.

    Args:
      slope: steepness `s`.

    Returns:
      A spike function, of SuperSpike's shape (Zenke and Ganguli 2018) with the slope of Zenke and Vogels 2021.

    Examples:
      >>> import jax
      >>> from hyprjax import surrogate
      >>> round(float(jax.grad(surrogate.fast_sigmoid())(0.1)), 4)
      0.25
    """
    return _spike(lambda x: 1 / jnp.square(1 + slope * jnp.abs(x)))


def triangular(gamma: float = 0.3, width: float = 1.0) -> SpikeFn:
    r"""Triangle, :math:`\gamma\max(0, 1-|x|/w)`.

    Args:
      gamma: peak value, the dampening factor.
      width: half width `w` of the base, in the units of `x`.

    Returns:
      A spike function, with the defaults of Bellec et al. 2018 and 2020, for `x` in units of the threshold.

    Examples:
      >>> import jax
      >>> from hyprjax import surrogate
      >>> round(float(jax.grad(surrogate.triangular())(0.5)), 4)
      0.15
    """
    return _spike(lambda x: gamma * jnp.maximum(0.0, 1 - jnp.abs(x) / width))


def arctan(alpha: float = 2.0) -> SpikeFn:
    r"""Derivative of an arc tangent, :math:`\frac{\alpha}{2}/(1+(\frac{\pi}{2}\alpha x)^2)`.

    Args:
      alpha: steepness, twice the peak value.

    Returns:
      A spike function, with the default of Fang et al. 2021.

    Examples:
      >>> import jax
      >>> from hyprjax import surrogate
      >>> round(float(jax.grad(surrogate.arctan())(0.0)), 4)
      1.0
    """
    return _spike(lambda x: 0.5 * alpha / (1 + jnp.square(0.5 * jnp.pi * alpha * x)))


def gaussian(sigma: float = 0.5, gamma: float = 1.0) -> SpikeFn:
    r"""Gaussian, :math:`\gamma N(x;\sigma)`.

    Args:
      sigma: standard deviation.
      gamma: area under the derivative.

    Returns:
      A spike function, with the shape and default width of Yin et al. 2020.

    Examples:
      >>> import jax
      >>> from hyprjax import surrogate
      >>> round(float(jax.grad(surrogate.gaussian())(0.0)), 4)
      0.7979
    """
    return _spike(lambda x: gamma * _normal_pdf(x, sigma))
