"""What the backward passes over a sequence share: which operands want a gradient, and where its pieces go.

The gradient of an operand that is handed whole to every segment is a sum over segments, that of one which is cut is put
together along time. Both are for the `wanted` operands only, named by their index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from hyprjax import _sequence, _sharding
from hyprjax._sequence import Plan


@jax.tree_util.register_static
class Wanted(NamedTuple):
    """Which operands want a gradient: those handed whole to every segment, and those cut along time."""

    whole: tuple[int, ...]
    timed: tuple[int, ...]


def wanted(plan: Plan, indices: Sequence[int]) -> Wanted:
    """These operands."""
    whole = tuple(i for i in indices if plan.axes[i] is None)
    return Wanted(whole, tuple(i for i in indices if plan.axes[i] is not None))


def perturbed(plan: Plan, operands: Sequence[Any]) -> Wanted:
    """The operands that are differentiated, given as to the forward rule of a `jax.custom_vjp` with symbolic zeros."""
    real = lambda x: jnp.issubdtype(x.value.dtype, jnp.inexact)  # noqa: E731
    return wanted(plan, [i for i, x in enumerate(operands) if x.perturbed and real(x)])


def nonzero(cotangents: Sequence[Any]) -> list[Array | None]:
    """Cotangents as given to the backward rule, None for those that are zero."""
    absent = lambda ct: isinstance(ct, SymbolicZero) or ct.dtype == jax.dtypes.float0  # noqa: E731
    return [None if absent(ct) else ct for ct in cotangents]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def once(name: str, arrays: Any) -> Any:
    """`arrays` that a gradient is made from: its own derivative, which would leave most of it out, is refused."""
    return arrays


@once.defjvp
def _twice(name, primals, tangents):
    raise TypeError(
        f"{name}: the result of this transform is differentiated once more, but it has no derivative; take second "
        "derivatives of the model itself, as in jax.hessian without the transform, and first ones of a loss by "
        "jax.grad around hj.hypr(model) or hj.bptt(model)"
    )


def present(values: Sequence[Any], cotangents: Sequence[Array | None]) -> list[Any]:
    """The values that have a cotangent."""
    return [value for value, cotangent in zip(values, cotangents, strict=True) if cotangent is not None]


def zeros(wanted: Wanted, operands: Sequence[Array]) -> list[Array]:
    """Where sums over segments start, of float32 at least."""
    wide = lambda x: np.promote_types(x.dtype, np.float32)  # noqa: E731  # allowed under JAX's strict promotion, too
    return [_sharding.zeros_like(operands[i], wide(operands[i])) for i in wanted.whole]


def pull_back(
    run: Callable[[list[Array], Any], tuple[Any, Any]],
    cotangents: Callable[[Any], Any],
    given: Sequence[Array],
    places: Sequence[int],
    entering: Any,
) -> tuple[Any, list[Array], Any]:
    """Runs a segment and pulls it back.

    Args:
      run: `(operands, entering) -> (outputs, aux)`.
      cotangents: of the outputs, from the outputs.
      given: the operands of the segment.
      places: which of them want a gradient.
      entering: what else is differentiated.

    Returns:
      `aux`, and the gradients of the operands at `places` and of `entering`.
    """

    def of_chosen(chosen, entering):
        own = list(given)
        for place, operand in zip(places, chosen, strict=True):
            own[place] = operand
        return run(own, entering)

    outputs, pull, aux = jax.vjp(of_chosen, [given[place] for place in places], entering, has_aux=True)
    grads, of_entering = pull(cotangents(outputs))
    return aux, grads, of_entering


def taken(wanted: Wanted, takes: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Which of the wanted operands a segment takes, and their places there."""
    indices = [i for i in [*wanted.whole, *wanted.timed] if i in takes]
    return indices, [takes.index(i) for i in indices]


def collect(
    wanted: Wanted, indices: Sequence[int], grads: Sequence[Array], total: list[Array], weight: float = 1.0
) -> tuple[list[Array], list[Array]]:
    """Adds the gradients of one segment up, as far as they are sums; the others come back."""
    by_index = dict(zip(indices, grads, strict=True))
    add = lambda t, i: t + weight * by_index[i].astype(t.dtype) if i in by_index else t  # noqa: E731
    return list(map(add, total, wanted.whole)), [by_index[i] for i in wanted.timed]


def spread(
    plan: Plan, wanted: Wanted, operands: Sequence[Array], total: list[Array], full: Any, last: Any
) -> tuple[Array | None, ...]:
    """The gradient of every operand, None where none is wanted, from the sums and the pieces of the segments."""
    axes = [plan.axes[i] for i in wanted.timed]
    pieces = [[None] * len(axes) if part is None else part for part in (full, last)]
    grads = dict(zip([*wanted.whole, *wanted.timed], [*total, *map(_sequence.join, *pieces, axes)], strict=True))
    return tuple(grads[i].astype(x.dtype) if i in grads else None for i, x in enumerate(operands))
