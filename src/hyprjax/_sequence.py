"""A call of a transformed function on a sequence: its arrays, which axis of each is time, and its segments.

Arguments are flattened into operands. One with a time axis is cut, one without is handed to every segment whole. The
function itself becomes two programs, for a full segment and for a shorter last one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from hyprjax import _program, _sharding
from hyprjax._checks import arguments, start, time
from hyprjax._program import Program


class Call(NamedTuple):
    """The arguments of one call as flat operands.

    Attributes:
      operands: the arrays among the leaves of `(params, xs, args, kwargs)`, in this order.
      axes: the time axis of each, or None.
      of_params: how many are of `params`.
      steps: length of the sequence.
      fn: the function of the operands.
    """

    operands: list[Array]
    axes: tuple[int | None, ...]
    of_params: int
    steps: int
    fn: Callable[..., PyTree]


def call(fn: Callable[..., PyTree], time_axis: Any, params: PyTree, xs: PyTree, args: Any, kwargs: Any) -> Call:
    """Flattens the arguments; what is no array stays as it is, but for floats in `params` and all numbers in `xs`."""
    steps, of_xs = arguments.time_axes(xs, time_axis)
    leaves, tree = jax.tree.flatten((params, xs, args, kwargs))
    before, data = len(jax.tree.leaves(params)), len(of_xs)
    axes = [*[None] * before, *of_xs, *[None] * (len(leaves) - before - data)]
    array, real, number = jax.Array | np.ndarray | np.generic, float | complex, bool | int | float | complex
    traced = [
        isinstance(leaf, array | real if i < before else array | number if i < before + data else array)
        for i, leaf in enumerate(leaves)
    ]

    def flat(*operands):
        rest = iter(operands)
        params, xs, args, kwargs = tree.unflatten(
            [next(rest) if is_traced else leaf for leaf, is_traced in zip(leaves, traced, strict=True)]
        )
        return fn(params, xs, *args, **kwargs)

    chosen = [(leaf, axis) for leaf, axis, is_traced in zip(leaves, axes, traced, strict=True) if is_traced]
    operands = [jnp.asarray(leaf) if not isinstance(leaf, jax.Array) else leaf for leaf, _ in chosen]
    return Call(operands, tuple(axis for _, axis in chosen), sum(traced[:before]), steps, flat)


class Plan(NamedTuple):
    """A sequence in segments: `full` ones of `length` steps, and one of `rest` after them (0: none).

    Attributes:
      length, full, rest: the cut.
      program: of a full segment.
      takes: which operands it takes.
      last: the program of the one after the full ones.
      last_takes: which operands that takes.
      axes: the time axis of each operand, or None.
    """

    length: int
    full: int
    rest: int
    program: Program
    takes: tuple[int, ...]
    last: Program
    last_takes: tuple[int, ...]
    axes: tuple[int | None, ...]

    @property
    def last_apart(self) -> Plan:
        """The same with a last segment of its own, even where that is as long as the others."""
        return self if self.rest else self._replace(full=self.full - 1, rest=self.length)

    def segment(
        self, operands: Sequence[Array], start: Any, last: bool
    ) -> tuple[Program, tuple[int, ...], list[Array]]:
        """The program of a segment, which operands it takes, and their part of it."""
        program, takes = (self.last, self.last_takes) if last else (self.program, self.takes)
        axes = [self.axes[i] for i in takes]
        return program, takes, cut([operands[i] for i in takes], axes, start, self.steps(last))

    def steps(self, last: bool) -> int:
        """Of a segment."""
        return self.rest if last else self.length

    def weight(self, last: bool, reduction: str) -> float:
        """Of a segment's loss in that of the sequence, a `"mean"` or a `"sum"` over steps."""
        return self.steps(last) / (self.length * self.full + self.rest) if reduction == "mean" else 1.0


def plan(
    name: str, call: Call, length: int, *, check: bool, results: Any = "loss"
) -> tuple[Plan, list[Array], str | None]:
    """How to run a call in segments of `length`.

    With `check`, a program that differs from that of the whole sequence is refused; `results` as in `time.check`, or a
    function that makes it from the program. Whether a loss is a sum or a mean is looked for with or without.

    Returns:
      The plan, its operands (those of the call, then what the function closes over), and what `time.check` finds.
    """
    length = min(length, call.steps)
    full, rest = divmod(call.steps, length)
    constants: list[Array] = []

    @cache
    def trace(steps):
        shapes = [_shape(x, axis, steps) for x, axis in zip(call.operands, call.axes, strict=True)]
        try:
            return _program.trace(name, call.fn, shapes, steps)
        except Exception as error:
            if steps < call.steps and str(call.steps) in str(error):
                error.add_note(
                    f"{name} runs the function on segments of {steps} of the {call.steps} time steps. An array with "
                    "time that it closes over, or takes after xs, stays whole: give it in xs"
                )
            raise

    def takes(arrays):
        """Constants stand behind the operands of the call: the same array as one of those is not differentiated."""
        return (*[len(call.operands) + _place(constants, x) for x in arrays], *range(len(call.operands)))

    (program, closed_over), (last, also_closed_over) = trace(length), trace(rest or length)
    if check and name != "bptt":
        start.check(name, program.jaxpr, start.of_params(program.jaxpr, call.of_params))
    reduction = None
    if length < call.steps and (check or results == "loss"):
        try:
            reduction = _followed(name, call, trace, length, rest, results)
        except ValueError:
            if check:
                raise
    of_full, of_last = takes(closed_over), takes(also_closed_over)
    axes = (*call.axes, *[None] * len(constants))
    return Plan(length, full, rest, program, of_full, last, of_last, axes), [*call.operands, *constants], reduction


def _followed(name: str, call: Call, trace: Callable[[int], Any], length: int, rest: int, results: Any) -> str | None:
    """What `time.check` finds of a call in segments of `length`; `trace` makes the program of one."""
    length = max(length, 2)  # time along an axis of one step cannot be told from others
    program, closed_over = trace(length)
    other = rest if rest not in (0, 1, length) else length + 1
    try:
        twin = trace(other)[0], other
    except Exception:  # a function that takes no other length; the same errors come from the first trace
        twin = None
    if callable(results):
        results = results(program, length)
    axes = (*[None] * len(closed_over), *call.axes)
    return time.check(name, program, axes, length, results, segments=True, twin=twin)


def one_segment(name: str, call: Call, *, check: bool = False) -> tuple[Program, list[Array], tuple[int, ...]]:
    """The program of a call as one segment, its operands, and which of them are parameters."""
    shapes = [jax.typeof(x) for x in call.operands]
    program, closed_over = _program.trace(name, call.fn, shapes, call.steps)
    if check and call.steps > 1:
        axes = (*[None] * len(closed_over), *call.axes)
        time.check(name, program, axes, call.steps, "anything", segments=False)
    of_params = range(len(closed_over), len(closed_over) + call.of_params)
    if check:
        start.check(name, program.jaxpr, start.of_params(program.jaxpr, call.of_params))
    return program, [*closed_over, *call.operands], tuple(of_params)


def model(
    name: str, call: Call, length: int, *, time_axis: Any, out_time_axis: Any, check: bool
) -> tuple[Plan, tuple[int, ...], list[Array]]:
    """How to run a model in segments of `length`, the time axis of each of its results, and its operands."""
    if out_time_axis is None:
        out_time_axis = time_axis if isinstance(time_axis, int | np.integer) else 0

    def axes(program, steps):
        return arguments.out_time_axes(name, _program.results(program), out_time_axis, steps)

    made, operands, _ = plan(name, call, length, check=check, results=axes)
    if made.rest:
        axes(made.last, made.rest)
    return made, axes(made.program, made.length), operands


def wrap(
    name: str,
    fn: Callable[..., PyTree],
    run: Callable[..., Any],
    length: int | None,
    default_length: Callable[[int], int],
    **options: Any,
) -> Callable[..., PyTree]:
    """The model `fn` by `run(plan, axes, *operands)`; `options` are those of `model`."""
    arguments.function(name, fn)

    @wraps(fn)
    def wrapped(params: PyTree, xs: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        of = call(fn, options["time_axis"], params, xs, args, kwargs)
        plan, axes, operands = model(name, of, length or default_length(of.steps), **options)
        try:
            results = run(plan, axes, *operands)
        except TypeError as error:
            if "forward-mode" not in str(error):
                raise
            raise TypeError(
                f"{name}: reverse mode only (jax.grad, jax.vjp, jax.jacrev); for jax.jvp, jax.jacfwd and jax.linearize "
                "differentiate the model without the transform"
            ) from error
        return jax.tree.unflatten(plan.program.tree, results)

    return wrapped


def _shape(x: Array, axis: int | None, steps: int) -> Any:
    aval = jax.typeof(x)
    return aval if axis is None else aval.update(shape=(*x.shape[:axis], steps, *x.shape[axis + 1 :]))


def _place(arrays: list[Array], x: Any) -> int:
    """Where `x` is among the arrays; it is added if it is not there."""
    for i, array in enumerate(arrays):
        if array is x:
            return i
    arrays.append(x)
    return len(arrays) - 1


def cut(arrays: Sequence[Any], axes: Sequence[int | None], start: Any, steps: int) -> list[Any]:
    """`steps` from `start` of each array along its time axis; one without, or None, stays whole."""

    def one(x, axis):
        if x is None or axis is None or x.shape[axis] == steps:
            return x
        # Behind the barrier it is cut once, not by everything that reads it.
        return jax.lax.optimization_barrier(jax.lax.dynamic_slice_in_dim(x, start, steps, axis))

    return [one(*both) for both in zip(arrays, axes, strict=True)]


def join(full: Array | None, rest: Array | None, axis: int) -> Array:
    """The whole sequence from the stacked pieces of the full segments and that of the last one."""
    pieces = [] if rest is None else [rest]
    if full is not None:
        pieces.insert(0, jax.lax.collapse(jnp.moveaxis(full, 0, axis), axis, axis + 2))
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces, axis)


Segment = Callable[[Any, Any, bool], tuple[Any, Any]]


def scan(plan: Plan, segment: Segment, state: Any) -> tuple[Any, Any, Any]:
    """`segment(state, start, last) -> (state, y)` over all segments.

    Returns:
      The last state, the `y` of the full segments, stacked, and that of the last one; None where there is none.
    """
    if plan.full == 0:
        state, y = segment(state, 0, True)
        return state, None, y

    def full(state, index):
        state, y = segment(state, index * plan.length, False)
        return state, (y, index)

    state, (ys, done) = jax.lax.scan(full, state, jnp.arange(plan.full))
    if plan.rest == 0:
        return state, ys, None

    def last(state):
        return segment(state, plan.full * plan.length, True)

    # A branch always taken: without it XLA prepares the last segment's buffers before the loop over the others has
    # released its own, a third more memory.
    def never(state):
        closed, result = jax.make_jaxpr(last, return_shape=True)(state)
        return jax.tree.unflatten(jax.tree.structure(result), map(_sharding.zeros, closed.out_avals))

    state, y = jax.lax.cond(done[-1] >= 0, last, never, state)
    return state, ys, y


def default_length(steps: int) -> int:
    """Of HYPR's segments, about 250 steps; a last segment as long as the others compiles faster."""
    divisors = [length for length in range(125, 501) if steps % length == 0]
    if divisors:
        return min(divisors, key=lambda length: abs(math.log(length / 250)))
    return math.ceil(steps / max(1, round(steps / 250)))


def bptt_length(steps: int) -> int:
    """Of checkpointed segments: near the square root, where carries and one segment need about the same memory."""
    root = math.isqrt(steps)
    divisors = [length for length in range(max(1, root // 2), 2 * root + 1) if steps % length == 0]
    nearest = lambda length: (max(length, steps / length), -length)  # noqa: E731
    return min(divisors, key=nearest, default=root + (root**2 < steps))


# --- a model over all segments --------------------------------------------------------------------


@partial(jax.jit, static_argnums=(0, 1), static_argnames="keep_carries")
def run(
    plan: Plan, axes: tuple[int, ...], operands: Sequence[Array], *, keep_carries: bool = False
) -> tuple[list[Array], Any]:
    """The results over the whole sequence, and the carries that entered the segments: of the full ones, of the last."""

    def segment(carry, start, last):
        program, _, given = plan.segment(operands, start, last)
        results, next_carry, _ = _program.evaluate(program, None, given, carry)
        return next_carry, (results, carry if keep_carries else ())

    program, _, given = plan.segment(operands, 0, False)
    _, full, last = scan(plan, segment, _program.rest(program, None, given))
    of_full, full_carries = full
    of_last, last_carry = last or ([None] * len(axes), None)
    return list(map(join, of_full, of_last, axes)), (full_carries, last_carry)
