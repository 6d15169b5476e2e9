"""`delay`, the third operation that continues from segment to segment: it keeps the last inputs."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.extend.core as jec
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from hyprjax import _program, _sharding
from hyprjax._program import Operation
from hyprjax._segment import Carry

delay_p = jec.Primitive("hyprjax.delay")
delay_p.multiple_results = True


def delay(x: Float[Array, "t *shape"], steps: int | Sequence[int]) -> Float[Array, "t *shape"]:
    """`x[t - steps]`, zeros before the start; in a transform it continues from segment to segment.

    Credit goes back through a delay within a segment only, but for `hyprjax.bptt`.

    Args:
      x: time first.
      steps: at least 0, fixed; or one for each channel, the last axis of `x`.

    Returns:
      An array like `x`.

    Raises:
      ValueError: `steps` are negative, or not one or one for each channel.
      TypeError: `steps` are not ints, or are traced.

    Examples:
      >>> import jax.numpy as jnp, hyprjax as hj
      >>> hj.delay(jnp.array([1.0, 2.0, 3.0]), 1).tolist()
      [0.0, 1.0, 2.0]
      >>> hj.delay(jnp.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]), [0, 2]).tolist()
      [[1.0, 0.0], [2.0, 0.0], [3.0, 1.0]]
    """
    x = jnp.asarray(x)
    if isinstance(steps, Tracer):
        raise TypeError("delay: steps is traced, but a delay is fixed; learned delays are a stack of delayed inputs")
    given = np.asarray(steps)
    if not np.issubdtype(given.dtype, np.integer):
        raise TypeError(f"delay: steps must be an int or ints, one for each channel, got {steps!r}")
    if x.ndim == 0 or (given < 0).any() or given.ndim > 1 or (given.ndim == 1 and given.shape != x.shape[1:][-1:]):
        raise ValueError(
            f"delay: steps must be at least 0, one int or one for each channel of x, its last axis; got {steps!r} for "
            f"x of shape {x.shape}"
        )
    if x.shape[0] == 0:
        raise ValueError(f"delay: x has no time steps, its shape is {x.shape}")
    fixed = int(given) if given.ndim == 0 else tuple(map(int, given))
    if _program.in_body.value:
        raise ValueError("delay was called in the body of hyprjax.scan, which has one step; put it before or after")
    if _program.tracing():
        return delay_p.bind(x, steps=fixed)[0]
    return _delayed({"steps": fixed}, [x], _delay_rest({"steps": fixed}, [x], None)[1], None)[0][0]


def _delay_rest(params, operands, options):
    (x,) = operands
    longest = max(np.max(params["steps"], initial=0), 1)
    return [x], [Carry(jnp.broadcast_to(_sharding.zeros_like(x[:1]), (longest, *x.shape[1:])), None, None)]


def _delayed(params, operands, entries, options):
    (x,), (before,), steps = operands, entries, params["steps"]
    known = jnp.concatenate([before.state, x])
    at = len(known) - len(x)
    if isinstance(steps, int):
        delayed = jax.lax.dynamic_slice_in_dim(known, at - steps, len(x))
    else:
        of_channel = lambda channel, start: jax.lax.dynamic_slice_in_dim(channel, start, len(x))  # noqa: E731
        delayed = jax.vmap(of_channel, (-1, 0), -1)(known, at - jnp.array(steps))
    return [delayed], [Carry(known[len(x) :], None, None)], []


@delay_p.def_abstract_eval
def _delay_types(x, *, steps):
    return [x.update(weak_type=False)]


def _batch_of_delay(operands, dims, *, steps):
    ((x,), (dim,)) = operands, dims
    return delay_p.bind(jnp.moveaxis(x, dim, 1), steps=steps), [1]


_program.operation(delay_p, Operation(lambda params: (0,), lambda params: 1, _delay_rest, _delayed), _batch_of_delay)
