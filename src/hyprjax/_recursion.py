"""The two linear recursions of the P-stage, run backward over one segment.

Both carry row vectors over the state from the end of the segment to its start:

    learning signal   q_λ = 0,    q_{t-1} = J_tᵀ q_t + G_t ζ_t
    propagation       R_λ = 1,    R_{t-1} = R_t J_t

A row of `R` obeys the recursion of `q` without the signal ζ, so "pull a row back" is all there is:
`q` is the row that starts at zero and collects ζ, the rows of `R` are those that start as unit vectors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hyprjax._linearize import linearize

Step = Callable[..., Any]


class Row(NamedTuple):
    """A row pulled back through the segment: `k` state variables, `p` neuron parameters.

    Attributes:
      state: `k` arrays `[*batch, n]`, the row at the start of the segment (`q_0`, or a row of `R_0`).
      current: `[t, *batch, n]`, the row times `∂s_t/∂I_t` (`δ_t`, or a row of `R_t B_t`).
      neuron: `p` arrays `[*batch, n]`, the row times `∂s_t/∂φ`, summed over the segment.
    """

    state: list[Float[Array, "*batch n"]]
    current: Float[Array, "t *batch n"]
    neuron: list[Float[Array, "*batch n"]]


class Rows(NamedTuple):
    """What the P-stage needs of a segment: the row of the learning signal and the `k` rows of `R`."""

    signal: Row
    propagation: list[Row]


def sequential(
    step: Step,
    neuron: Any,
    state: Any,
    current: Float[Array, "t *batch n"],
    reset: Bool[Array, "t *batch"] | None,
    zeta: Float[Array, "t *batch n"],
    *,
    propagate: bool,
    w_rec: Float[Array, "n n"] | None = None,
) -> Rows:
    """Both recursions as one reversed `lax.scan` with the derivatives of `step` taken inside it.

    Nothing of the local derivatives is ever stored, which on a CPU is the faster way by far.

    Args:
      step: `(neuron, state, current, reset) -> (state, output)`.
      neuron: pytree of `[n]` arrays.
      state: pytree of `[t, *batch, n]` arrays, the state before each step.
      current: `I_t`.
      reset: where the state before step t was put to rest, or None.
      zeta: the loss gradient of each output, `ζ_t`.
      propagate: whether the rows of `R` are wanted.
      w_rec: given, the explicit recurrence inside the segment is kept: `ζ_{t-1} += δ_t W_recᵀ`.

    Returns:
      The rows; `propagation` is empty without `propagate`.
    """
    tree = jax.tree.structure(state)
    k, zeros = tree.num_leaves, jnp.zeros_like(current[0])
    units = [[zeros + (c == d) for d in range(k)] for c in range(k if propagate else 0)]
    rows = [jax.tree.unflatten(tree, row) for row in ([zeros] * k, *units)]
    of_neuron = [jax.tree.map(lambda p: jnp.zeros(zeros.shape, p.dtype), neuron) for _ in rows]

    def pull_one(rows, state, current, reset, zeta):
        # One batch element: `neuron` stays [n], so what depends on it alone is computed once, not per element.
        _, pull = jax.vjp(lambda *args: step(*args, reset), neuron, state, current)
        pull = jax.lax.optimization_barrier(pull)  # otherwise every row evaluates the surrogate derivative for itself
        signal, *propagation = rows
        pulled = [pull((signal, zeta)), *[pull((row, jnp.zeros_like(zeta))) for row in propagation]]
        return tuple(list(parts) for parts in zip(*pulled, strict=True))

    for _ in range(zeros.ndim - 1):
        pull_one = jax.vmap(pull_one)

    def pull_back(carry, at_t):
        rows, of_neuron, feedback = carry
        state, current, reset, zeta = at_t
        of_step, rows, deltas = pull_one(rows, state, current, reset, zeta + feedback)
        of_neuron = jax.tree.map(jnp.add, of_neuron, of_step)
        if w_rec is not None:
            feedback = deltas[0] @ w_rec.T
            feedback = feedback if reset is None else jnp.where(reset[..., None], 0, feedback)
        return (rows, of_neuron, feedback), deltas

    carry, deltas = jax.lax.scan(pull_back, (rows, of_neuron, zeros), (state, current, reset, zeta), reverse=True)
    signal, *propagation = [
        Row(jax.tree.leaves(row), delta, jax.tree.leaves(neuron))
        for row, neuron, delta in zip(carry[0], carry[1], deltas, strict=True)
    ]
    return Rows(signal, propagation)


def associative(
    step: Step,
    neuron: Any,
    state: Any,
    current: Float[Array, "t *batch n"],
    reset: Bool[Array, "t *batch"] | None,
    zeta: Float[Array, "t *batch n"],
    *,
    propagate: bool,
) -> Rows:
    """Both recursions as one `lax.associative_scan` over the affine maps `q -> J_tᵀ q + G_t ζ_t`.

    Composing the maps of neighbouring steps gives `R` and `q` together. The local derivatives of
    the whole segment are stored; parallel over time, so the choice for accelerators.
    Arguments and result as in `sequential`.
    """
    J, G, B, g, D, h = linearize(lambda *args: step(*args, reset), neuron, state, current)
    k = len(G)

    def compose(later, earlier):
        (A, a), (M, m) = later, earlier
        return (M[:, :, None] * A[None]).sum(1), (M * a).sum(1) + m

    # Jᵀ as [t, d, c, *batch, n] and Gζ as [t, d, *batch, n]; `compose` sees one t.
    maps = jnp.stack([jnp.stack(column, 1) for column in J], 1), jnp.stack([G_d * zeta for G_d in G], 1)
    R, q = jax.lax.associative_scan(jax.vmap(compose), maps, reverse=True)

    def row(before: Array, end: Array) -> Row:
        """A row from its values before every step, `[t, k, *batch, n]`, and after the last, `[k, *batch, n]`."""
        after = list(jnp.moveaxis(jnp.concatenate([before[1:], end[None]]), 1, 0))
        return Row(list(before[0]), dot(after, B), [dot(after, D_i).sum(0) for D_i in D])

    zeros = jnp.zeros_like(q[0])
    signal = row(q, zeros)
    signal = signal._replace(
        current=signal.current + g * zeta,
        neuron=[of + (h_i * zeta).sum(0) for of, h_i in zip(signal.neuron, h, strict=True)],
    )
    return Rows(signal, [row(R[:, :, c], zeros.at[c].set(1)) for c in range(k if propagate else 0)])


def dot(row: Sequence[Array], column: Sequence[Array]) -> Array:
    """`Σ_c row[c] column[c]` over state variables."""
    return reduce(operator.add, map(operator.mul, row, column))


def pick(scan: str) -> Callable[..., Rows]:
    """The back end by name; `"auto"` is sequential on a CPU, associative elsewhere."""
    if scan == "auto":
        scan = "sequential" if jax.default_backend() == "cpu" else "associative"
    return {"sequential": sequential, "associative": associative}[scan]
