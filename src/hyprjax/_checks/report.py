"""What `check` reports, and the advice that follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

CREDITS, FIRING = ("none", "segment"), ("rate", "silent", "saturated")
MANY, LOW = 0.5, 0.5  # neurons of a layer, a cosine: what is worth a line of advice


class Layer(NamedTuple):
    """One `unroll`, over the whole sequence.

    Attributes:
      cell: name of the neuron model.
      shape: of the outputs, `[*stack, T, *batch, n]`; the stack is that of a scan over layers or an ensemble.
      neurons: how many, of the whole stack.
      rate: spikes per neuron and step; like the next two None if outputs are other than 0 and 1.
      silent: how many neurons never fire.
      saturated: how many fire at 95 % of all steps or more.
      finite: whether all outputs and the last state are.
      driven: whether any input is not zero.
      traces: bytes of HYPR's eligibility traces, `B·(m+n+1)·n·k` numbers (rows filled up to a multiple of 8) and those
        of the neuron parameters.
      states: bytes of the states that BPTT keeps, `T·B·n·k` numbers.
    """

    cell: str
    shape: tuple[int, ...]
    neurons: int
    rate: float | None
    silent: int | None
    saturated: int | None
    finite: bool
    driven: bool
    traces: int
    states: int


class Report(NamedTuple):
    """What `check` found; `str` is a table.

    Attributes:
      kind: `"loss"` or `"model"`.
      values: the loss for each segment length, T last; empty for a model.
      differences: for each segment length, how far loss or outputs are from those of the whole sequence, relative.
      layers: one entry for each `unroll`, in call order.
      prefix: how many steps the gradients are of; 0 if there are none, as none were asked for or `fn` does not run in
        segments of this length.
      cosines: for each leaf of the parameters the cosine of HYPR's gradient to the exact one, for each
        `recurrent_credit`; None where both are zero.
      advice: a line for each thing found.
    """

    kind: str
    values: dict[int, float]
    differences: dict[int, float]
    layers: tuple[Layer, ...]
    prefix: int
    cosines: dict[str, dict[str, float | None]]
    advice: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.advice

    def __str__(self):
        values = [["segment length", *self.differences]]
        values += [[self.kind, *(f"{x:.6g}" for x in self.values.values())]] if self.values else []
        values += [["difference", *(f"{x:.1g}" for x in self.differences.values())]]
        layers: list[list[Any]] = [["unroll", "cell", "outputs", *FIRING, "finite", "traces", "BPTT"]]
        for i, one in enumerate(self.layers):
            fires = [None if one.rate is None else f"{one.rate:.3f}", one.silent, one.saturated]
            layers.append([i, one.cell, list(one.shape), *fires, one.finite, _bytes(one.traces), _bytes(one.states)])
        cosines: list[list[Any]] = [
            [f"gradient of {self.prefix} steps", *(f"cosine, {credit} credit" for credit in CREDITS)]
        ]
        for leaf, of_leaf in self.cosines.items():
            cosines.append([leaf, *(x if x is None else f"{x:.3f}" for x in of_leaf.values())])
        advice = "\n".join(f"- {line}" for line in self.advice or ["nothing to change"])
        tables = (values, layers, cosines) if self.cosines else (values, layers)
        return "\n\n".join([f"a {self.kind}", *map(table, tables), advice])

    __repr__ = __str__


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows of cells as text with aligned columns."""
    show = {None: "-", True: "yes", False: "NO"}
    cells = [[show[x] if x is None or isinstance(x, bool) else str(x) for x in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def _bytes(size: float) -> str:
    power = min(int(math.log10(max(size, 1))) // 3, 4)
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def advise(report: Report, refusal: str | None, given: list[str], rounding: float) -> Iterator[str]:
    """A line for each thing found; what may follow from it is left out.

    Args:
      report: without advice.
      refusal: what the transforms say against the function, or None.
      given: names of parameters and inputs that are not finite.
      rounding: the largest difference between segment lengths that is rounding.
    """
    if broken := next(_of_not_finite(report, given), None):
        yield broken
        return
    length, worst = max(report.differences.items(), key=lambda item: item[1])
    if refusal:
        yield refusal
    elif worst > rounding:
        yield (
            f"the {report.kind} changes with the segment length, at {length} by {worst:.1g}: something mixes or picks "
            "time steps; for a loss of the whole sequence take hj.hypr(model), and the loss outside of it"
        )
    for i, one in enumerate(report.layers):
        name = f"unroll {i} ({one.cell})"
        if one.driven and (one.silent or 0) > MANY * one.neurons:
            how = f"{one.silent} of {one.neurons} neurons are silent"
            yield f"{name}: {how}: hj.calibrate sets a rate, or init_layer(gain=)"
        if (one.saturated or 0) > MANY * one.neurons:
            how = f"{one.saturated} of {one.neurons} neurons fire at (almost) every step"
            yield f"{name}: {how}: hj.calibrate sets a rate, or smaller weights"
    if worst <= rounding:
        yield from _of_cosines(report)


def _of_not_finite(report: Report, given: list[str]) -> Iterator[str]:
    """Where it begins comes first."""
    if given:
        yield f"not finite: {', '.join(given)}"
    for i, one in enumerate(report.layers):
        if not one.finite:
            yield (
                f"not finite: outputs or state of unroll {i} ({one.cell}), on finite data: smaller weights or inputs; "
                "hj.check_cell tells whether its neurons diverge by themselves"
            )
    if any(map(math.isnan, report.differences.values())):
        yield f"not finite: the {report.kind}, though all layers are: look at what becomes of their outputs"
    for leaf, cosines in report.cosines.items():
        if any(cosine is not None and math.isnan(cosine) for cosine in cosines.values()):
            yield f"not finite: the gradient of {leaf}, though all values are: jnp.where hides NaN in a value only"


def _of_cosines(report: Report) -> Iterator[str]:
    low = sorted(
        (of["none"], leaf) for leaf, of in report.cosines.items() if of["none"] is not None and of["none"] < LOW
    )
    for cosine, leaf in low[:1]:
        segment = report.cosines[leaf]["segment"] or 0.0
        fix = (
            f'recurrent_credit="segment" has {segment:.2f}' if segment > cosine + 0.1 else "longer segments, or hj.bptt"
        )
        more = f" (and below {LOW} on {len(low) - 1} more)" if len(low) > 1 else ""
        yield f"cosine {cosine:.2f} to the exact gradient on {leaf}{more}: {fix}"
