"""What becomes of one axis of a function's operands, followed through its jaxpr: one value for each variable.

    free       nothing with the axis is in it
    place      free, but different along the axis: an index, an array as long as the axis
    along      it has the axis
    sum        linear in a sum over the axis
    bad        it mixes or picks entries of the axis, with the operation
    unknown    not followed; let through

Time is followed through programs (`time.py`), neurons and batch through the step of a cell (`arguments.py`). The rules
of the primitives are in `axis_rules`; what they do not know is *unknown*.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.extend.core as jec
import jax.numpy as jnp


class Value(NamedTuple):
    """What is known of a variable.

    Attributes:
      kind: one of the above.
      axis: of *along* and *place*.
      before, after: how many entries there are around each one of the axis: 1, unless a reshape merged axes.
      reason: of *bad*.
      fresh: of *free*: whether random numbers may be drawn from it.
      power: the power of the axis' length that is a factor of it, beside what a sum is: 0 of a sum, -1 of a mean;
        `OTHER` of any other function of the length; None where that is not known.
    """

    kind: str
    axis: int = 0
    before: int = 1
    after: int = 1
    reason: str = ""
    fresh: bool = False
    power: int | None = 0

    def at(self, axis: int) -> Value:
        """The same along another axis."""
        return self._replace(axis=axis)


FREE, SUM, UNKNOWN = Value("free"), Value("sum"), Value("unknown")
OTHER = 99  # in the place of a power
HAS_AXIS = ("along", "place")
Rule = Callable[["Analysis", jec.JaxprEqn, list[Value]], "list[Value] | Value"]
_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for the primitives of these names."""

    def register(fn: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, fn))
        return fn

    return register


class Analysis:
    """Follows an axis.

    Args:
      entries: what they are, for messages.
      lengths: of it, and of it in the twin, the same function at another length; equal where there is none.
      apart: whether its entries must stay apart, as neurons; if not, they may be summed, but a place must not matter.
      on_unroll: hears of every `unroll`.
    """

    def __init__(
        self,
        entries: str,
        lengths: tuple[int, int],
        *,
        apart: bool = False,
        on_unroll: Callable[[jec.JaxprEqn, list[Value]], None] = lambda eqn, values: None,
    ):
        self.entries, self.lengths, self.apart, self.on_unroll = entries, lengths, apart, on_unroll
        self.twin: jec.JaxprEqn | None = None  # of the equation that is followed
        self.inside: list[jec.JaxprEqn] = []  # the calls around it

    def run(self, jaxpr: jec.Jaxpr, values: Sequence[Value], twin: jec.Jaxpr | None = None) -> list[Value]:
        """The values of the results from those of constants and operands."""
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], values, strict=True))
        twins = twin.eqns if twin and len(twin.eqns) == len(jaxpr.eqns) else [None] * len(jaxpr.eqns)

        def read(atoms, others):
            others = others if others and len(others) == len(atoms) else [None] * len(atoms)
            return [
                FREE._replace(power=self.power(v, other)) if isinstance(v, jec.Literal) else known[v]
                for v, other in zip(atoms, others, strict=True)
            ]

        for eqn, other in zip(jaxpr.eqns, twins, strict=True):
            self.twin = other if other and other.primitive is eqn.primitive else None
            ins = read(eqn.invars, self.twin and self.twin.invars)
            known.update(zip(eqn.outvars, self.equation(eqn, ins), strict=True))
        return read(jaxpr.outvars, twin and twin.outvars)

    def bad(self, eqn: jec.JaxprEqn, why: str) -> Value:
        """Of an operation that may not be."""
        return Value("bad", reason=f"{eqn.primitive.name} {why}{self.place(eqn)}")

    def place(self, eqn: jec.JaxprEqn) -> str:
        """The user's line of an equation, or of the innermost call around it that has one."""
        for one in (eqn, *reversed(self.inside)):
            for frame in getattr(one.source_info.traceback, "frames", ()):
                if not any(folder in frame.file_name for folder in _LIBRARIES):
                    return f" ({frame.file_name}:{frame.line_num})"
        return ""

    def power(self, literal: Any, other: Any) -> int | None:
        """Of the axis' length in a constant, from its value at both lengths."""
        if not isinstance(other, jec.Literal) or jnp.ndim(literal.val) or jnp.ndim(other.val):
            return None
        return self.ratio(literal.val, other.val)

    def ratio(self, here: Any, there: Any) -> int:
        """The power of the axis' length that takes one value into the other."""
        if here == there or (here != here and there != there):
            return 0
        length, other = self.lengths
        powers = {p for p in (-2, -1, 1, 2) if cmath.isclose(here * (other / length) ** p, there, rel_tol=1e-5)}
        return powers.pop() if len(powers) == 1 else OTHER

    def equation(self, eqn: jec.JaxprEqn, values: list[Value]) -> list[Value]:
        """The values of what an equation returns."""
        name, count = eqn.primitive.name, len(eqn.outvars)
        if not count:  # as of jax.debug.print
            return []
        rule = _RULES.get(name)
        if name not in ENTERED:
            for value in values:
                if value.kind == "bad":
                    return [value] * count
            if name not in DRAWS and all(value.kind == "free" for value in values) and name != "iota":
                return self.made(eqn, self._of_free(eqn, values))
            if any(value.kind == "unknown" for value in values):
                return [UNKNOWN] * count
        result = rule(self, eqn, values) if rule else self.elementwise(eqn, values)
        return result if isinstance(result, list) else [result] * count

    def _of_free(self, eqn: jec.JaxprEqn, values: list[Value]) -> Value:
        name, powers = eqn.primitive.name, [value.power for value in values]
        if name == "reduce_sum" and self.twin:
            sizes = [math.prod(shape_of(one.invars[0])[d] for d in eqn.params["axes"]) for one in (eqn, self.twin)]
            powers.append(self.ratio(*sizes))
        return FREE._replace(fresh=any(value.fresh for value in values), power=power_of(name, powers))

    def made(self, eqn: jec.JaxprEqn, value: Value) -> list[Value]:
        """The results of an operation on what has no axis: a place where it works along one that follows the length."""

        def one(i, v):
            shape, there = shape_of(v), shape_of(self.twin.outvars[i]) if self.twin else ()
            for d in [] if self.apart else _works_along(eqn):
                if shape[d] == self.lengths[0] if len(there) != len(shape) else shape[d] != there[d]:
                    return Value("place", d)
            return value

        return [one(i, v) for i, v in enumerate(eqn.outvars)]

    def elementwise(self, eqn: jec.JaxprEqn, values: list[Value]) -> Value:
        """An operation that the shapes say is element-wise; any other that no rule is for is not followed."""
        shape = shape_of(eqn.outvars[0])
        fits = lambda s: s == () or (len(s) == len(shape) and all(a in (1, b) for a, b in zip(s, shape, strict=True)))  # noqa: E731
        if len(eqn.outvars) > 1 or not all(map(fits, map(shape_of, eqn.invars))):
            return UNKNOWN
        return self.combine(eqn, values)

    def combine(self, eqn: jec.JaxprEqn, values: list[Value]) -> Value:
        """Of operands whose axes lie on each other."""
        if any(value.kind == "sum" for value in values):
            return self._of_sum(eqn, values)
        along = {value._replace(power=0) for value in values if value.kind in HAS_AXIS}
        wholes = {value for value in along if value.kind == "along"}
        if len(wholes) > 1:
            return self.bad(eqn, f"pairs {self.entries}")
        if not wholes:
            return min(along, default=FREE)
        (whole,) = wholes
        if whole._replace(kind="place") in along:
            return self.bad(eqn, "combines time steps with their place in the segment, which every segment starts anew")
        return whole._replace(power=power_of(eqn.primitive.name, [value.power for value in values]))

    def _of_sum(self, eqn: jec.JaxprEqn, values: list[Value]) -> Value:
        name, kinds = eqn.primitive.name, [value.kind for value in values]
        if any(kind in HAS_AXIS for kind in kinds):
            return self.bad(eqn, "combines time steps with a sum over time")
        if name == "select_n" and kinds[0] == "free":
            return self.added(zip(eqn.invars[1:], values[1:], strict=True))
        if name in ("add", "sub", "add_any", "stack", "concatenate"):
            return self.added(zip(eqn.invars, values, strict=True))
        if name in _LINEAR or (name == "mul" and kinds.count("sum") == 1) or (name == "div" and kinds[1:] == ["free"]):
            return SUM._replace(power=power_of(name, [value.power for value in values]))
        return self.bad(eqn, "is not linear in a sum over time")

    def added(self, terms: Iterable[tuple[Any, Value]]) -> Value:
        """A sum of sums and means over the axis and of what is without it."""
        counted = [value for v, value in terms if not (isinstance(v, jec.Literal) and v.val == 0)]
        # What is without the axis counts once a segment, as a mean does; times its length, once a step.
        powers = {value.power if value.kind == "sum" else (value.power or 0) - 1 for value in counted}
        if None in powers:
            return SUM._replace(power=None)
        return SUM._replace(power=powers.pop() if len(powers) == 1 else OTHER)


def shape_of(v: Any) -> tuple[int, ...]:
    return v.aval.shape


def power_of(name: str, powers: list[int | None]) -> int | None:
    """The power of the axis' length in a result, from those in the operands."""
    if None in powers or set(powers) <= {0}:
        return None if None in powers else 0
    if OTHER in powers:
        return OTHER
    if name in ("mul", "reduce_sum"):
        return sum(power or 0 for power in powers)
    if name == "div":
        return (powers[0] or 0) - (powers[1] or 0)
    return powers[0] if name in _KEEPS and len(set(powers)) == 1 else OTHER


def _works_along(eqn: jec.JaxprEqn) -> Sequence[int]:
    """The axes along which the results of an operation may differ where its operands do not."""
    name, params = eqn.primitive.name, eqn.params
    if name in ("slice", "dynamic_slice", "concatenate", "pad", "dynamic_update_slice"):
        sizes = zip(shape_of(eqn.invars[name == "dynamic_update_slice"]), shape_of(eqn.outvars[0]), strict=True)
        return [d for d, (old, new) in enumerate(sizes) if old != new]
    if name.startswith("scatter"):
        return params["dimension_numbers"].scatter_dims_to_operand_dims
    return [params[_AXIS[name]]] if name in _AXIS else []


_LIBRARIES = ("site-packages", "dist-packages", str(Path(__file__).parents[1]))
_AXIS = {"iota": "dimension", "stack": "axis", "cumsum": "axis", "cumprod": "axis", "cummax": "axis", "cummin": "axis"}
_AXIS |= {"cumlogsumexp": "axis"}
_LINEAR = {"neg", "convert_element_type", "copy", "copy_p", "stop_gradient", "real", "imag", "reduce_precision"}
_LINEAR |= {"sharding_constraint", "mesh_cast", "reshard", "optimization_barrier", "name"}
_LINEAR |= {"pvary", "psum", "psum_invariant", "ppermute"}  # between devices
_KEEPS = _LINEAR | {"broadcast_in_dim", "reshape", "squeeze", "transpose", "add", "sub", "add_any", "max", "min"}
_KEEPS |= {"stack", "concatenate", "slice", "gather"}
ENTERED = {"jit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr", "remat2": "jaxpr"}
ENTERED |= {"custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr", "scan": "jaxpr"}
ENTERED |= {"unroll": "", "hyprjax.scan": "", "hyprjax.delay": ""}
DRAWS = ("random_bits", "threefry2x32", "random_gamma")


def scan_lengths(eqn: jec.JaxprEqn) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are its carry."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = map(len, eqn.params["ft_in"].unpack())  # jax 0.12
    return consts, carry
