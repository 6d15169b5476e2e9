"""The synapses of a layer by port, that is, by the synaptic current of the cell that they make up.

A cell with one current has parameters `w_in`, `w_rec`, `bias` and inputs that are arrays; one with named ports has
dicts of them, with the ports that have such a part, and one array of inputs for all ports or a dict of them. Everything
in a segment is linear in the currents, so that each port is for itself what a layer with one current is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from hyprjax._cell import Cell, Params

PARTS = ("w_in", "w_rec", "bias")


class Synapses(NamedTuple):
    """What makes up one current; None for a part that it does not have.

    Attributes:
      inputs: what `w_in` is applied to.
      w_in, w_rec, bias: the parameters.
    """

    inputs: Any
    w_in: Float[Array, "m n"] | None
    w_rec: Float[Array, "n n"] | None
    bias: Float[Array, " n"] | None

    @property
    def rows(self) -> int:
        """Of the weight matrix, without the zeros that fill it up."""
        return sum(len(w) for w in (self.w_in, self.w_rec) if w is not None) + (self.bias is not None)


def names(cell: Cell) -> tuple[str, ...] | tuple[None]:
    """Of the ports, in the order of the leaves of a dict; of a cell with one current, None."""
    return tuple(sorted(cell.ports)) or (None,)


def onto(port: str | None, part: Any) -> Any:
    """What of a part of the parameters, or of the inputs, belongs to a port; None for nothing."""
    return part.get(port) if isinstance(part, dict) else part


def split(cell: Cell, params: Params, inputs: Any) -> list[Synapses]:
    """The synapses of each port."""
    of_port = [[onto(port, params.get(part)) for part in PARTS] for port in names(cell)]
    return [
        Synapses(None if parts[0] is None else onto(port, inputs), *parts)
        for port, parts in zip(names(cell), of_port, strict=True)
    ]


def join(cell: Cell, values: Sequence[Any]) -> Any:
    """A dict by port of what each port has, without those that have None; the one value of a cell with one current."""
    if not cell.ports:
        return values[0]
    return {port: value for port, value in zip(names(cell), values, strict=True) if value is not None}


def apart(cell: Cell, joined: Any) -> list[Any]:
    """What each port has of something that `join` made."""
    return [onto(port, joined) for port in names(cell)] if cell.ports else [joined]


def of_params(cell: Cell, params: Params, by_port: Sequence[Synapses]) -> Params:
    """The gradients of the weights from those of each port."""
    present = [part for part in PARTS if params.get(part) is not None]
    return {part: join(cell, [getattr(port, part) for port in by_port]) for part in present}


def of_inputs(cell: Cell, inputs: Any, by_port: Sequence[Synapses]) -> Any:
    """The gradient of the inputs from those of each port."""
    if isinstance(inputs, dict):
        return join(cell, [port.inputs for port in by_port])
    given = [port.inputs for port in by_port if port.inputs is not None]
    return sum(given[1:], given[0])
