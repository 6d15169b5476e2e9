"""What a program does along time, followed through its jaxpr (`axis.py`).

A program in several segments is the program of the whole sequence if no *bad* value enters an `unroll` or comes out,
and what is summed over time comes out of a loss function only. That is checked on the shapes of one segment, when it is
traced. Whether a loss is a sum or a mean is seen by a second look at a segment of another length: a mean has a
constant that follows the length.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from hyprjax._checks.axis import FREE, HAS_AXIS, Analysis, Value
from hyprjax._program import OPERATIONS, Program


@lru_cache(maxsize=256)
def check(
    name: str,
    program: Program,
    axes: tuple[int | None, ...],
    steps: int,
    results: Any,
    *,
    segments: bool,
    twin: tuple[Program, int] | None = None,
) -> str | None:
    """Refuses a program that is another one for another segment length.

    Args:
      name: of the transform, for the message.
      program: of one segment.
      axes: the time axis of each operand, constants first; None for what is the same in every segment.
      steps: of the segment.
      results: `"loss"`: the first result is a loss, a sum over time; `"anything"`; or the time axis of each result.
      segments: whether constants and whole operands come again in other segments; if not, only constants do.
      twin: the same program for another number of steps.

    Returns:
      Of a loss, whether it is a `"sum"` or a `"mean"` over time, `"neither"`, or `"unknown"`; None of one without time.

    Raises:
      ValueError: with the operation, its line, and what to do instead.
    """
    consts = len(program.jaxpr.constvars)
    other, length = twin or (None, steps)

    def entering(i, v):
        if axes[i] is not None:
            return Value("along", axes[i])
        if i < consts and (place := _made_for(v, other and other.jaxpr.constvars[i : i + 1], steps)) is not None:
            return Value("place", place)
        return FREE._replace(fresh=not segments and i >= consts)

    start = [entering(i, v) for i, v in enumerate([*program.jaxpr.constvars, *program.jaxpr.invars])]

    def on_unroll(eqn, values):
        ensemble, what = eqn.params.get("ensemble", ()), eqn.primitive.name
        signals = OPERATIONS[what].signals(eqn.params)
        for i, value in enumerate(values):
            time = i in signals and value.axis == sum(level[i] for level in ensemble)
            if value.kind == "bad":
                raise ValueError(_message(name, f"what enters {what}", value.reason))
            if value.kind == "sum":
                reason = f"it holds a sum over the steps of a segment{analysis.place(eqn)}"
                raise ValueError(_message(name, f"what enters {what}", reason))
            if value.power not in (0, None):
                reason = f"it depends on the number of steps of a segment{analysis.place(eqn)}"
                raise ValueError(_message(name, f"what enters {what}", reason))
            if value.kind == "place" and time:
                reason = f"it depends on the place of a step in its segment{analysis.place(eqn)}"
                raise ValueError(_message(name, f"what enters {what}", reason))
            if value.kind == "along" and i in signals and not time:
                raise ValueError(
                    f"{name}: {what} runs along axis 0 of its inputs, but time is axis {value.axis} "
                    f"there{analysis.place(eqn)}; move time to the front with jnp.moveaxis, or vmap over the batch"
                )
            if value.kind == "along" and what == "hyprjax.scan" and i not in signals:
                raise ValueError(
                    f"{name}: the init or the body of hyprjax.scan uses an array with a time axis as a whole"
                    f"{analysis.place(eqn)}; give it as xs, of which the body takes one step at a time"
                )

    analysis = Analysis("time steps", (steps, length), on_unroll=on_unroll)
    found = analysis.run(program.jaxpr, start, other and other.jaxpr)
    if results == "anything":
        return None
    if results == "loss":
        loss = found[0]
        if loss.kind == "bad":
            raise ValueError(_message(name, "the loss", loss.reason))
        if loss.kind not in ("sum", "unknown"):
            return None
        return (
            "unknown" if loss.kind == "unknown" else {0: "sum", -1: "mean", None: "unknown"}.get(loss.power, "neither")
        )
    for i, (value, axis) in enumerate(zip(found, results, strict=True)):
        if value.kind == "along" and value.axis != axis:
            raise ValueError(
                f"{name}: time is axis {value.axis} of output {i} of the function, not axis {axis}; set "
                "out_time_axis, to an int or a pytree of one for each output"
            )
        if value.kind in ("bad", "sum"):
            raise ValueError(_message(name, "an output", value.reason or "is a sum over the steps of a segment"))
        if value.power not in (0, None):
            raise ValueError(_message(name, "an output", "depends on the number of steps of a segment"))
        if value.kind in HAS_AXIS and value.axis == axis and value.kind == "place":
            raise ValueError(_message(name, "an output", "depends on the place of a step in its segment"))
    return None


def _made_for(v: Any, there: Any, steps: int) -> int | None:
    """The axis of a constant that is as long as the segment: made for it, or, where there is no twin, by chance."""
    shape = v.aval.shape
    if there:
        shapes = zip(shape, there[0].aval.shape, strict=False)
        return next((d for d, (here, other) in enumerate(shapes) if here != other), None)
    return shape.index(steps) if steps in shape else None


def _message(name: str, what: str, reason: str) -> str:
    fix = (
        "take the loss of hj.hypr(model)(params, xs), which may be any function of the whole sequence, or weights for "
        "each step in xs"
        if what == "the loss"
        else "hj.scan and hj.delay continue from segment to segment; or move it outside of the transform, or give what "
        "it needs for each step in xs"
    )
    return (
        f"{name}: {what} is not the same for every segment length: {reason}. The function is run on one segment of the "
        f"sequence at a time; {fix}"
    )
