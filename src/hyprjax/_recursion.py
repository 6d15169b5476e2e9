"""The two linear recursions of the P-stage, run backward over one segment.

Both carry row vectors over the state from the end of the segment to its start:

    learning signal   q_λ = 0,    q_{t-1} = J_tᵀ q_t + G_t ζ_t
    propagation       R_λ = 1,    R_{t-1} = R_t J_t

A row of `R` obeys the recursion of `q` without the signal ζ, so "pull a row back through a step" is all there is: one
`jax.vjp` of `step`. `q` is the row that starts at zero and collects ζ, the rows of `R` start as unit vectors.

Both are linear, so a segment may be cut into chunks that are pulled back side by side, each from a zero row for `q` and
from unit rows for `R`, and joined afterwards. A row that comes to the end of chunk `c` as `e` leaves its start as
`e R_c`, and gives each step in it `e` times what the unit rows gave; the signal's row adds the chunk's own `q_c`, and
what that gave. These affine maps compose, so `jax.lax.associative_scan` finds the `e` of all chunks at once: the depth
is that of one chunk and the logarithm of their number.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hyprjax import _sharding

Step = Callable[..., Any]


class Row(NamedTuple):
    """A row pulled back through the segment: `k` state variables, `p` neuron parameters.

    Attributes:
      state: `k` arrays `[*batch, n]`, the row at the start of the segment (`q_0`, or a row of `R_0`).
      current: for each port `[t, *batch, n]`, the row times `∂s_t/∂I_t` (`δ_t`, or a row of `R_t B_t`).
      neuron: `p` arrays `[*batch, n]`, the row times `∂s_t/∂φ`, summed over the segment.
    """

    state: list[Float[Array, "*batch n"]]
    current: list[Float[Array, "t *batch n"]]
    neuron: list[Float[Array, "*batch n"]]


class Rows(NamedTuple):
    """What the P-stage needs of a segment: the row of the learning signal and the `k` rows of `R`.

    Attributes:
      signal: of `q`.
      propagation: of `R`.
    """

    signal: Row
    propagation: list[Row]


@jax.named_scope("recursion")
def pull_back(
    step: Step,
    neuron: Any,
    state: Any,
    current: Any,
    reset: Bool[Array, "t *batch"] | None,
    zeta: Any,
    *,
    propagate: bool,
    chunks: int = 1,
    w_rec: Sequence[Float[Array, "n n"] | None] | None = None,
) -> Rows:
    """Both recursions, as one reversed `lax.scan` over `t / chunks` steps with the derivatives of `step` taken in it.

    Nothing of the local derivatives is ever stored.

    Args:
      step: `(neuron, state, current, reset) -> (state, output)`; with `w_rec` the output is a pair of what goes up and
        of what `w_rec` carries back.
      neuron: pytree of `[n]` arrays.
      state: pytree of `[t, *batch, n]` arrays, the state before each step.
      current: `I_t`, a pytree with a leaf for each port.
      reset: where the state before step t was put to rest, or None.
      zeta: the loss gradient of what goes up, `ζ_t`, a pytree.
      propagate: whether the rows of `R` are wanted.
      chunks: pulled back in parallel; a divisor of `t`, and 1 with `w_rec`.
      w_rec: given, of each port, the explicit recurrence inside the segment is kept: `ζ_{t-1} += δ_t W_recᵀ`.

    Returns:
      The rows; `propagation` is empty without `propagate`.
    """
    fold = lambda x: x.reshape(chunks, len(x) // chunks, *x.shape[1:])  # noqa: E731
    segment = jax.tree.map(fold, (state, current, reset, zeta))
    rows = _pull_chunks(step, neuron, segment, propagate or chunks > 1, w_rec)
    if chunks > 1:
        signal, *propagation = _join(rows[0], rows[1:], propagate, reset)
    else:
        signal, *propagation = [jax.tree.map(lambda a: a[0], row) for row in rows]
    return Rows(signal, propagation)


def _pull_chunks(step: Step, neuron: Any, segment: Any, propagate: bool, w_rec: Any) -> list[Row]:
    """The signal's row and, with `propagate`, the unit rows, through each chunk for itself: chunks lead every array."""
    state, current, reset, _ = segment
    tree, steps = jax.tree.structure(state), jax.tree.leaves(current)[0]
    zeros = _sharding.zeros_like(steps[:, 0])
    k = tree.num_leaves
    before = None if reset is None else jax.vmap(before_a_reset)(reset)
    starts = [[zeros] * k, *[_unit(zeros, c, k) for c in range(k if propagate else 0)]]
    rows = [jax.tree.unflatten(tree, row) for row in starts]
    of_neuron = [jax.tree.map(lambda p: _sharding.zeros_like(zeros, p.dtype), neuron) for _ in rows]

    def pull_one(rows, state, current, reset, zeta):
        # One batch element: `neuron` stays [n], so what depends on it alone is computed once, not per element.
        _, pull = jax.vjp(lambda *args: step(*args, reset), neuron, state, current)
        if propagate and jax.default_backend() == "cpu":  # or every row evaluates the surrogate derivative for itself
            pull = jax.lax.optimization_barrier(pull)
        signal, *propagation = rows
        silent = jax.tree.map(_sharding.zeros_like, zeta)
        pulled = [pull((signal, zeta)), *[pull((row, silent)) for row in propagation]]
        return tuple(list(parts) for parts in zip(*pulled, strict=True))

    for _ in range(zeros.ndim - 1):
        pull_one = jax.vmap(pull_one)
    w_back = jax.lax.optimization_barrier([None if w is None else w.T for w in w_rec or ()])  # transposed once

    def pull(carry, t):
        rows, of_neuron, feedback = carry
        state, current, reset, zeta, forgotten = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, t, axis=1, keepdims=False), (*segment, before)
        )
        of_step, rows, deltas = pull_one(rows, state, current, reset, zeta if w_rec is None else (zeta, feedback))
        if forgotten is not None:  # The unit rows are zero there already, and stay so beside what is inf or NaN.
            clear = lambda parts: [parts[0], *jax.tree.map(partial(_sharding.where, forgotten, 0), parts[1:])]  # noqa: E731
            of_step, rows, deltas = map(clear, (of_step, rows, deltas))
        deltas = list(map(jax.tree.leaves, deltas))
        of_neuron = jax.tree.map(jnp.add, of_neuron, of_step)
        if w_rec is not None:
            like = _sharding.over(zeros, *_sharding.spec(zeros))
            recurrent = [(delta, w) for delta, w in zip(deltas[0], w_back, strict=True) if w is not None]
            back = [jnp.matmul(delta, w, out_sharding=like) for delta, w in recurrent]
            feedback = sum(back[1:], back[0])
            feedback = feedback if reset is None else _sharding.where(reset, 0, feedback)
        return (rows, of_neuron, feedback), deltas

    times = jnp.arange(steps.shape[1])
    (rows, of_neuron, _), deltas = jax.lax.scan(pull, (rows, of_neuron, zeros), times, reverse=True, unroll=at_once())
    return [
        Row(jax.tree.leaves(row), [jnp.moveaxis(of_port, 1, 0) for of_port in delta], jax.tree.leaves(neuron))
        for row, neuron, delta in zip(rows, of_neuron, deltas, strict=True)
    ]


def before_a_reset(reset: Bool[Array, "t *batch"]) -> Bool[Array, "t *batch"]:
    """Where a later step is a reset, which clears the traces of what was before."""
    ever = jax.lax.cummax(reset.astype(jnp.int8), reverse=True) > 0
    return jnp.concatenate([ever[1:], jnp.zeros_like(ever[:1])])


def _join(signal: Row, units: list[Row], propagate: bool, reset: Bool[Array, "t *batch"] | None) -> list[Row]:
    """The rows of the whole segment from those of its chunks."""
    zeros, k = _sharding.zeros_like(signal.state[0]), len(units)
    through = lambda row, parts: [dot(row, part) for part in zip(*parts, strict=True)]  # noqa: E731

    def compose(later, earlier):
        """What two neighbouring chunks make of a row together: `e R + q`."""
        (R, q), (R_earlier, q_earlier) = later, earlier
        return [through(row, R_earlier) for row in R], list(map(operator.add, through(q, R_earlier), q_earlier))

    own = [unit.state for unit in units], signal.state
    R, q = jax.lax.associative_scan(compose, own, reverse=True)  # of all chunks from this one to the last
    # A chunk's end is the start of the next; the last one ends with unit rows, and zeros for q.
    of_next = lambda x, last: jnp.concatenate([x[1:], last[:1]])  # noqa: E731
    ends = [jax.tree.map(of_next, q, [zeros] * k)]
    if propagate:
        ends += [jax.tree.map(of_next, R[c], _unit(zeros, c, k)) for c in range(k)]

    def whole(start, end, own):
        current = through([e[:, None] for e in end], [unit.current for unit in units])
        neuron = through(end, [unit.neuron for unit in units])
        if own:
            current, neuron = (
                list(map(operator.add, *both)) for both in ((current, own.current), (neuron, own.neuron))
            )
        at_start = [x[0] for x in start]
        if not own and reset is not None:
            in_chunks = lambda mask: mask.reshape(len(zeros), len(mask) // len(zeros), *mask.shape[1:])  # noqa: E731
            clear = lambda mask, arrays: [_sharding.where(mask, 0, x) for x in arrays]  # noqa: E731
            current = clear(in_chunks(before_a_reset(reset)), current)
            neuron = clear(before_a_reset(in_chunks(reset).any(1)), neuron)
            at_start = clear(reset.any(0), at_start)
        return Row(at_start, [jax.lax.collapse(x, 0, 2) for x in current], [part.sum(0) for part in neuron])

    starts, owns = [q, *R][: len(ends)], [signal, *[None] * k][: len(ends)]
    return [whole(*row) for row in zip(starts, ends, owns, strict=True)]


def _unit(zeros: Array, index: int, k: int) -> list[Array]:
    """A row that is one in the state variable `index`."""
    return [zeros + float(index == c) for c in range(k)]


def dot(row: Sequence[Array], column: Sequence[Array]) -> Array:
    """`Σ_c row[c] column[c]` over state variables."""
    return reduce(operator.add, map(operator.mul, row, column))


def at_once() -> int:
    """How many time steps a scan compiles as one.

    On an accelerator the rows of several steps are pulled back in one kernel, which keeps them in registers, and a loop
    of small kernels waits for the start of each; a CPU gains nothing, and compiles much longer.
    """
    return 1 if jax.default_backend() == "cpu" else 5


def chunks(scan: str, chunk_length: int | None, steps: int, size: int) -> int:
    """Into how many chunks the back end of this name cuts a segment of `steps`, of `size` neurons times batch elements.

    Of `chunk_length` steps, or the next lower divisor of `steps`; None for about `√steps`. `"auto"` is `"sequential"`
    once a step has work enough for it: a `size` of 2,048 on a CPU and 131,072 elsewhere (docs/performance.md).
    """
    enough = 2_048 if jax.default_backend() == "cpu" else 131_072
    if scan == "sequential" or (scan == "auto" and size >= enough):
        return 1
    if chunk_length is None:
        return max(divisor for divisor in range(1, math.isqrt(steps) + 1) if steps % divisor == 0)
    return steps // max(divisor for divisor in range(1, min(chunk_length, steps) + 1) if steps % divisor == 0)
