"""Draws of a layer's weights, `(key, n_in, n_out) -> (w_in, w_rec)`, for `init_layer` and `Cell.weights`.

The spiking models of `hyprjax.cells` use `heterogeneous`, at a scale with which they fire. The draws of their papers
have names of their own; with inputs of unit size the oscillators and the adLIF models are silent with these.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array

Weights = tuple[Array, Array]


@runtime_checkable
class WeightsFn(Protocol):
    """Draws the synaptic weights of a layer."""

    def __call__(self, key: Array, n_in: int, n_out: int) -> Weights:
        """Returns `w_in` `[n_in, n_out]` and `w_rec` `[n_out, n_out]`."""
        ...


def heterogeneous(scale: float, spread: float = 32.0, *, shuffle: bool = True) -> WeightsFn:
    """Normal weights with an input gain that differs from neuron to neuron.

    The input weights of a neuron are a random direction times `scale · s`. The gains s of a layer are evenly spaced on
    a log scale, around one and over a factor of `spread`, in random order. With one gain for all, inputs that grow by
    a factor of three take a layer from silent to saturated; with many, some neurons are at work for weak inputs and
    for strong ones. In the order of s, every second neuron is excited by the mean of its inputs and the others are
    inhibited, so that layers fire alike whatever the key. Recurrent weights have a standard deviation of
    `scale / (4 sqrt(n_out))`, too small for a layer to keep itself active.

    Args:
      scale: length of the input weights in the middle of the layer, > 0.
      spread: the largest gain over the smallest, >= 1; 1 for one gain for all.
      shuffle: whether the gains are in random order. In ascending order they are the same for all ports of a cell whose
        currents add up.

    Returns:
      A draw `(key, n_in, n_out) -> (w_in, w_rec)`.

    Raises:
      ValueError: `scale` is not positive, or `spread` is less than 1.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> w_in, w_rec = hj.weights.heterogeneous(3.0, spread=4.0)(jax.random.key(0), 10, 16)
      >>> lengths = jnp.linalg.norm(w_in, axis=0)
      >>> bool((lengths > 1.5).all() and (lengths < 6.0).all())
      True
    """
    if not scale > 0 or not spread >= 1:
        raise ValueError(f"heterogeneous: scale must be positive and spread at least 1, got {scale!r} and {spread!r}")

    def draw(key: Array, n_in: int, n_out: int) -> Weights:
        key_in, key_gain, key_rec = jax.random.split(key, 3)
        order = jax.random.permutation(key_gain, n_out) if shuffle else jnp.arange(n_out)
        direction = jax.random.normal(key_in, (n_in, n_out))
        direction *= jnp.sign(direction.sum(0)) * (1 - 2 * (order % 2)) / jnp.linalg.norm(direction, axis=0)
        w_in = scale * spread ** ((order + 0.5) / n_out - 0.5) * direction
        return w_in, scale / 4 * jax.random.normal(key_rec, (n_out, n_out)) / n_out**0.5

    return draw


def glorot_uniform(key: Array, n_in: int, n_out: int) -> Weights:
    """Glorot-uniform, both matrices drawn as one with fan-in `n_in + n_out` (Higuchi et al. 2024, BRF).

    Examples:
      >>> import jax, hyprjax as hj
      >>> params = hj.init_layer(jax.random.key(0), hj.brf(), 4, 36, recurrent=True, weights=hj.weights.glorot_uniform)
      >>> bool(abs(params["w_in"]).max() <= (6 / (4 + 36 + 36)) ** 0.5)
      True
    """
    w = jax.nn.initializers.glorot_uniform()(key, (n_in + n_out, n_out))
    return w[:n_in], w[n_in:]


def normal_fan_in(key: Array, n_in: int, n_out: int) -> Weights:
    """Normal, of standard deviation 1/sqrt(fan-in) (Bellec et al. 2020, LIF and ALIF).

    Examples:
      >>> import jax, hyprjax as hj
      >>> w_in, w_rec = hj.weights.normal_fan_in(jax.random.key(0), 100, 400)
      >>> round(float(w_in.std()), 2), round(float(w_rec.std()), 2)
      (0.1, 0.05)
    """
    key_in, key_rec = jax.random.split(key)
    w_in = jax.random.normal(key_in, (n_in, n_out)) / n_in**0.5
    return w_in, jax.random.normal(key_rec, (n_out, n_out)) / n_out**0.5


def uniform_orthogonal(key: Array, n_in: int, n_out: int) -> Weights:
    """Input weights uniform within 1/sqrt(n_in), orthogonal recurrent weights (Baronig et al. 2024, adLIF).

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> w_in, w_rec = hj.weights.uniform_orthogonal(jax.random.key(0), 100, 30)
      >>> bool(abs(w_in).max() <= 0.1 and jnp.allclose(w_rec @ w_rec.T, jnp.eye(30), atol=1e-5))
      True
    """
    key_in, key_rec = jax.random.split(key)
    w_in = jax.random.uniform(key_in, (n_in, n_out), minval=-(n_in**-0.5), maxval=n_in**-0.5)
    return w_in, jax.nn.initializers.orthogonal()(key_rec, (n_out, n_out))


def lecun_orthogonal(key: Array, n_in: int, n_out: int) -> Weights:
    """Input weights truncated normal, of variance 1/n_in, orthogonal recurrent weights (Flax's GRU and LSTM).

    Examples:
      >>> import jax, hyprjax as hj
      >>> w_in, w_rec = hj.weights.lecun_orthogonal(jax.random.key(0), 100, 400)
      >>> round(float(w_in.std()), 2), round(float(w_rec.std()), 2)
      (0.1, 0.05)
    """
    key_in, key_rec = jax.random.split(key)
    w_in = jax.nn.initializers.lecun_normal()(key_in, (n_in, n_out))
    return w_in, jax.nn.initializers.orthogonal()(key_rec, (n_out, n_out))
