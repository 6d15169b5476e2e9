"""Exact gradients of a model: backpropagation through segments that are run again, each from the carry kept for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from hyprjax import _backward, _program, _sequence, _sharding
from hyprjax._checks import arguments
from hyprjax._segment import Options
from hyprjax._sequence import Plan

_EXACT = Options(exact=True)


def bptt(
    fn: Callable[..., PyTree],
    *,
    segment_length: int | None = None,
    time_axis: Any = 0,
    out_time_axis: Any = None,
    check: bool = True,
) -> Callable[..., PyTree]:
    """A model whose derivative is exact and needs memory for `T / λ` carries and `λ` steps instead of `T` steps.

    The forward pass keeps the state at the start of each segment of `λ` steps. Under `jax.grad` each segment is run
    once more from there, the last one first, and pulled back. Same value and same gradient as `fn` itself:

    ```python
    carries = [rest]
    for start in range(0, T, segment_length):
        outputs[start : start + segment_length], carry = run(params, carries[-1], xs[start : start + segment_length])
        carries.append(carry)
    ```

    Args:
      fn: the model, `(params, xs, *args, **kwargs) -> outputs`; it calls `unroll`, and every output has a time axis.
      segment_length: time steps per segment λ. By default the divisor of T for which the larger of λ and T/λ is
        smallest, if it is between half and twice the root of T, else the root itself, rounded up: neither carries
        nor steps then need much.
      time_axis: the time axis of `xs`, see `hypr`.
      out_time_axis: that of the outputs, see `hypr`.
      check: whether a model that mixes time steps is refused, see `hypr`.

    Returns:
      A function with the arguments, the value and the gradient of `fn`; reverse mode only, and once.

    Raises:
      ValueError: as `hypr`.
      TypeError: as `hypr`, second derivatives among them.

    Examples:
      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.brf()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=3, n_out=5, recurrent=True)
      >>> model = lambda params, xs: hj.unroll(cell, params, xs)
      >>> loss = lambda params, model: (model(params, jnp.ones((100, 3)))[-1] ** 2).sum()
      >>> exact, grads = jax.grad(loss)(params, model), jax.grad(loss)(params, hj.bptt(model, segment_length=10))
      >>> all(bool(jnp.allclose(a, b)) for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(grads)))
      True
    """
    length = arguments.positive_int("segment_length", segment_length, optional=True)
    options = {"time_axis": time_axis, "out_time_axis": out_time_axis, "check": check}
    return _sequence.wrap("bptt", fn, _model, length, _sequence.bptt_length, **options)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _model(plan: Plan, axes: tuple[int, ...], *operands: Array) -> list[Array]:
    return _sequence.run(plan, axes, operands)[0]


def _forward(plan, axes, *operands):
    values = [operand.value for operand in operands]
    results, carries = _sequence.run(plan, axes, values, keep_carries=True)
    return results, (_backward.perturbed(plan, operands), values, carries)


def _pull(plan, axes, residuals, cotangents):
    wanted, operands, carries = residuals
    operands = _backward.once("bptt", operands)
    return _gradients(plan, axes, wanted, operands, carries, _backward.nonzero(cotangents))


_model.defvjp(_forward, _pull, symbolic_zeros=True)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _gradients(plan, axes, wanted, operands, carries, cotangents):
    """From the cotangents of the results (or None): the last segment first, each from the carry that entered it."""

    def segment(state, start, last, entering):
        leaving, total = state
        program, takes, given = plan.segment(operands, start, last)
        back = _sequence.cut(cotangents, axes, start, plan.steps(last))
        indices, places = _backward.taken(wanted, takes)

        def run(given, floating):
            carry = _with_floating(entering, floating)
            results, carry, _ = _program.evaluate(program, _EXACT, given, carry)
            return (_backward.present(results, back), _floating(carry)), None

        of_outputs = lambda _: (_backward.present(back, back), leaving)  # noqa: E731
        _, grads, leaving = _backward.pull_back(run, of_outputs, given, places, _floating(entering))
        total, timed = _backward.collect(wanted, indices, grads, total)
        return (leaving, total), timed

    of_full, of_last = carries
    end = of_last if plan.rest else jax.tree.map(lambda leaf: leaf[0], of_full)
    state = list(map(_sharding.zeros_like, _floating(end))), _backward.zeros(wanted, operands)
    last = None
    if plan.rest:
        state, last = segment(state, plan.full * plan.length, True, of_last)

    def full(state, at_segment):
        index, entering = at_segment
        return segment(state, index * plan.length, False, entering)

    (start, total), pieces = jax.lax.scan(full, state, (jnp.arange(plan.full), of_full), reverse=True)
    total, timed = _of_rest(plan, wanted, operands, start, total)
    pieces = [piece.at[0].add(first) for piece, first in zip(pieces, timed, strict=True)]
    return _backward.spread(plan, wanted, operands, total, pieces, last)


def _is_floating(x: Array) -> bool:
    """Whether a part of the carry is differentiated; counts and keys, which `scan` may carry, are not."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _floating(carry):
    return [x for x in jax.tree.leaves(carry) if _is_floating(x)]


def _with_floating(carry, floating):
    replaced, (leaves, tree) = iter(floating), jax.tree.flatten(carry)
    return tree.unflatten([next(replaced) if _is_floating(x) else x for x in leaves])


def _of_rest(plan, wanted, operands, cotangent, total):
    """What the carry before the first step owes to whole operands, added up, and to the first piece of the others."""
    program, takes, given = plan.segment(operands, 0, False)
    indices, places = _backward.taken(wanted, takes)
    rest = lambda given, _: (_floating(_program.rest(program, None, given)), None)  # noqa: E731
    _, grads, _ = _backward.pull_back(rest, lambda _: cotangent, given, places, ())
    return _backward.collect(wanted, indices, grads, total)
