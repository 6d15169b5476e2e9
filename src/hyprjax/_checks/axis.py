"""What becomes of one axis of a function's operands, followed through its jaxpr: one value for each variable.

    free       nothing with the axis is in it
    place      free, but different along the axis: an index, an array as long as the axis
    along      it has the axis
    sum        linear in a sum over the axis
    bad        it mixes or picks entries of the axis, with the operation
    unknown    not followed; let through

Time is followed through programs (`time.py`), neurons and batch through the step of a cell (`arguments.py`). The rules
are one short function for a family of primitives; what they do not know is *unknown*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
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
      power: of *free* and *sum*: the power of the axis' length that is a factor of it, beside what a sum is: 0 of a
        sum, -1 of a mean; None where that is not known.
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
        return self.ratio(float(literal.val), float(other.val))

    def ratio(self, here: float, there: float) -> int | None:
        """The power of the axis' length that takes one value into the other."""
        if here == there or (math.isnan(here) and math.isnan(there)):
            return 0
        length, other = self.lengths
        powers = {p for p in (-2, -1, 1, 2) if math.isclose(here * (other / length) ** p, there, rel_tol=1e-5)}
        return powers.pop() if len(powers) == 1 else None

    def equation(self, eqn: jec.JaxprEqn, values: list[Value]) -> list[Value]:
        """The values of what an equation returns."""
        name, count = eqn.primitive.name, len(eqn.outvars)
        rule = _RULES.get(name)
        if name not in _ENTERED:
            for value in values:
                if value.kind == "bad":
                    return [value] * count
            if name not in _DRAWS and all(value.kind == "free" for value in values) and name != "iota":
                return [self._of_free(eqn, values)] * count
            if any(value.kind == "unknown" for value in values):
                return [UNKNOWN] * count
        result = rule(self, eqn, values) if rule else self.elementwise(eqn, values)
        return result if isinstance(result, list) else [result] * count

    def _of_free(self, eqn: jec.JaxprEqn, values: list[Value]) -> Value:
        name, powers = eqn.primitive.name, [value.power for value in values]
        if name == "reduce_sum" and self.twin:
            sizes = [math.prod(_shape(one.invars[0])[d] for d in eqn.params["axes"]) for one in (eqn, self.twin)]
            powers.append(self.ratio(*sizes))
        return FREE._replace(fresh=any(value.fresh for value in values), power=_power(name, powers))

    def elementwise(self, eqn: jec.JaxprEqn, values: list[Value]) -> Value:
        """An operation that the shapes say is element-wise; any other that no rule is for is not followed."""
        shape = _shape(eqn.outvars[0])
        fits = lambda s: s == () or (len(s) == len(shape) and all(a in (1, b) for a, b in zip(s, shape, strict=True)))  # noqa: E731
        if len(eqn.outvars) > 1 or not all(map(fits, map(_shape, eqn.invars))):
            return UNKNOWN
        if any(value.kind == "sum" for value in values):
            return self._of_sum(eqn, values)
        along = {value._replace(power=0) for value in values if value.kind in HAS_AXIS}
        wholes = {value for value in along if value.kind == "along"}
        if len(wholes) > 1:
            return self.bad(eqn, f"pairs {self.entries}")
        if not wholes:
            return along.pop() if len(along) == 1 else UNKNOWN
        (whole,) = wholes
        if whole._replace(kind="place") in along:
            return self.bad(eqn, "combines time steps with their place in the segment, which every segment starts anew")
        return whole._replace(power=_power(eqn.primitive.name, [value.power for value in values]))

    def _of_sum(self, eqn: jec.JaxprEqn, values: list[Value]) -> Value:
        name, kinds = eqn.primitive.name, [value.kind for value in values]
        if any(kind in HAS_AXIS for kind in kinds):
            return self.bad(eqn, "combines time steps with a sum over time")
        if name == "select_n" and kinds[0] == "free":
            return self._added(eqn, [(v, value) for v, value in zip(eqn.invars[1:], values[1:], strict=True)])
        if name in ("add", "sub", "add_any"):
            return self._added(eqn, list(zip(eqn.invars, values, strict=True)))
        if name in _LINEAR or (name == "mul" and kinds.count("sum") == 1) or (name == "div" and kinds[1:] == ["free"]):
            return SUM._replace(power=_power(name, [value.power for value in values]))
        return self.bad(eqn, "is not linear in a sum over time")

    def _added(self, eqn: jec.JaxprEqn, terms: list[tuple[Any, Value]]) -> Value:
        """A sum of sums and means over the axis and of what is without it."""
        counted = [value for v, value in terms if not (isinstance(v, jec.Literal) and v.val == 0)]
        powers = {value.power if value.kind == "sum" else _ONCE for value in counted}
        if None in powers:
            return SUM._replace(power=None)
        if powers == {-1, _ONCE}:  # a mean of means: the rest is weighted like the segment
            return SUM._replace(power=-1)
        return SUM._replace(power=powers.pop() if len(powers) == 1 else _MIXED)


def _shape(v: Any) -> tuple[int, ...]:
    return v.aval.shape


def _power(name: str, powers: list[int | None]) -> int | None:
    """The power of the axis' length in a result, from those in the operands."""
    if None in powers or set(powers) <= {0}:
        return None if None in powers else 0
    if name in ("mul", "reduce_sum"):
        return sum(power or 0 for power in powers)
    if name == "div":
        return (powers[0] or 0) - (powers[1] or 0)
    return powers[0] if name in _KEEPS and len(set(powers)) == 1 else None


_LIBRARIES = ("site-packages", "dist-packages", str(Path(__file__).parents[1]))
_ONCE, _MIXED = 90, 99  # in the place of a power: without the axis; neither a sum nor a mean
_LINEAR = {"neg", "convert_element_type", "copy", "copy_p", "stop_gradient", "real", "imag", "reduce_precision"}
_LINEAR |= {"sharding_constraint", "mesh_cast", "reshard", "optimization_barrier", "name"}
_LINEAR |= {"pvary", "psum", "psum_invariant", "ppermute"}  # between devices
_KEEPS = _LINEAR | {"broadcast_in_dim", "reshape", "squeeze", "transpose", "add", "sub", "add_any", "max", "min"}


# --- nested programs ------------------------------------------------------------------------------

_ENTERED = {"jit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr", "remat2": "jaxpr"}
_ENTERED |= {"custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr", "scan": "jaxpr"}
_ENTERED |= {"unroll": "", "hyprjax.scan": "", "hyprjax.delay": ""}


@rule("jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
def _enter(analysis, eqn, values):
    inner, twin = (one and one.params[_ENTERED[eqn.primitive.name]] for one in (eqn, analysis.twin))
    consts = [FREE] * len(getattr(inner, "consts", ()))
    analysis.inside.append(eqn)
    results = analysis.run(_open(inner), [*consts, *values], _open(twin))
    analysis.inside.pop()
    return results


def _open(jaxpr: Any) -> Any:
    return jaxpr.jaxpr if isinstance(jaxpr, jec.ClosedJaxpr) else jaxpr


@rule("unroll")
def _unroll(analysis, eqn, values):
    analysis.on_unroll(eqn, values)
    return Value("along", len(eqn.params["ensemble"]))


@rule("hyprjax.delay")
def _delay(analysis, eqn, values):
    analysis.on_unroll(eqn, values)
    return Value("along")


@rule("hyprjax.scan")
def _scan_along_time(analysis, eqn, values):
    analysis.on_unroll(eqn, values)
    carried = eqn.params["carried"]
    last = Value("bad", reason=f"the last carry of hyprjax.scan is that of a segment{analysis.place(eqn)}")
    return [last] * carried + [Value("along")] * (len(eqn.outvars) - carried)


def scan_lengths(eqn: jec.JaxprEqn) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are its carry."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = map(len, eqn.params["ft_in"].unpack())  # jax 0.12
    return consts, carry


@rule("scan")
def _scan(analysis, eqn, values):
    consts, carried = scan_lengths(eqn)
    closed = eqn.params["jaxpr"]
    if any(value.kind in HAS_AXIS and value.axis == 0 for value in values[consts + carried :]):
        return analysis.bad(eqn, f"runs along {analysis.entries}, and starts anew in every segment")
    carry = list(values[consts : consts + carried])
    xs = [v.at(v.axis - 1) if v.kind in HAS_AXIS else v for v in values[consts + carried :]]
    outs: list[Value] = []
    for _ in range(len(carry) + 2):
        outs = analysis.run(closed.jaxpr, [*[FREE] * len(closed.consts), *values[:consts], *carry, *xs])
        joined = list(map(_join, carry, outs))
        if joined == carry:
            break
        carry = joined
    ys = [v.at(v.axis + 1) if v.kind in HAS_AXIS else v for v in outs[carried:]]
    return [*carry, *ys]


def _join(a: Value, b: Value) -> Value:
    """What holds of both."""
    if a == b or b.kind == "free" or a.kind == "bad":
        return a
    return b if a.kind == "free" or b.kind == "bad" else UNKNOWN


@rule("cond")
def _cond(analysis, eqn, values):
    if values[0].kind != "free":
        return analysis.bad(eqn, f"chooses by {analysis.entries}") if values[0].kind != "unknown" else UNKNOWN
    outs = [analysis.run(b.jaxpr, [*[FREE] * len(b.consts), *values[1:]]) for b in eqn.params["branches"]]
    return [_joined(column) for column in zip(*outs, strict=True)]


def _joined(values: Sequence[Value]) -> Value:
    result = values[0]
    for value in values[1:]:
        result = _join(result, value)
    return result


@rule("while")
def _while(analysis, eqn, values):
    return FREE if all(value.kind == "free" for value in values) else UNKNOWN


# --- random numbers -------------------------------------------------------------------------------

_DRAWS = ("random_bits", "threefry2x32", "random_gamma")


@rule("random_seed", "random_wrap", "random_unwrap", "random_split", "random_fold_in", "random_clone")
def _key(analysis, eqn, values):
    along = [value for value in values if value.kind in HAS_AXIS]
    return along[0] if along else FREE._replace(fresh=any(value.fresh for value in values))


@rule(*_DRAWS)
def _draw(analysis, eqn, values):
    along = [value for value in values if value.kind in HAS_AXIS]
    if along:
        return along[0]
    if any(value.fresh for value in values):
        return FREE
    if analysis.apart:
        return analysis.bad(eqn, "draws random numbers")
    return analysis.bad(eqn, "draws the same random numbers in every segment; give one key for each step in xs")


def _is_key(v: Any) -> bool:
    aval = v.aval
    return jnp.issubdtype(aval.dtype, jax.dtypes.prng_key) or (aval.dtype == jnp.uint32 and aval.shape[-1:] == (2,))


# --- axes that move -------------------------------------------------------------------------------


@rule("broadcast_in_dim")
def _broadcast(analysis, eqn, values):
    value = values[0]
    return value.at(eqn.params["broadcast_dimensions"][value.axis]) if value.kind in HAS_AXIS else value


@rule("iota")
def _iota(analysis, eqn, values):
    dimension = eqn.params["dimension"]
    whole = _shape(eqn.outvars[0])[dimension] == analysis.lengths[0]
    return Value("along" if analysis.apart else "place", dimension) if whole else FREE


@rule("transpose")
def _transpose(analysis, eqn, values):
    (value,) = values
    return value.at(eqn.params["permutation"].index(value.axis)) if value.kind in HAS_AXIS else value


@rule("squeeze")
def _squeeze(analysis, eqn, values):
    (value,) = values
    if value.kind not in HAS_AXIS:
        return value
    if value.axis in eqn.params["dimensions"]:
        return UNKNOWN
    return value.at(value.axis - sum(d < value.axis for d in eqn.params["dimensions"]))


@rule("reshape")
def _reshape(analysis, eqn, values):
    value, old, new = values[0], _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    if value.kind not in HAS_AXIS:
        return value
    steps = old[value.axis] // (value.before * value.after)
    outer = math.prod(old[: value.axis]) * value.before
    done = 1
    for axis, size in enumerate(new):
        through = done * size
        if outer % done == 0 and through % (outer * steps) == 0 and (steps > 1 or size > 1):
            return value._replace(axis=axis, before=outer // done, after=through // (outer * steps))
        done = through
    return UNKNOWN if steps == 1 else analysis.bad(eqn, f"cuts {analysis.entries} into pieces")


@rule("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor", "reduce")
@rule("argmax", "argmin")
def _reduce(analysis, eqn, values):
    value, adds = _joined(values), eqn.primitive.name == "reduce_sum"
    axes = eqn.params.get("axes", eqn.params.get("dimensions", ()))
    if value.kind == "sum":
        return value if adds else analysis.bad(eqn, "is not linear in a sum over time")
    if value.kind not in HAS_AXIS:
        return value
    if value.axis not in axes:
        return value.at(value.axis - sum(axis < value.axis for axis in axes))
    if value.kind == "place":
        return FREE
    return (
        SUM._replace(power=value.power)
        if adds and not analysis.apart
        else analysis.bad(eqn, f"over {analysis.entries}")
    )


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulate(analysis, eqn, values):
    return _unless(analysis, eqn, values[0], [eqn.params["axis"]], f"along {analysis.entries}")


@rule("rev")
def _reverse(analysis, eqn, values):
    return _unless(analysis, eqn, values[0], eqn.params["dimensions"], f"reverses {analysis.entries}")


@rule("sort")
def _sort(analysis, eqn, values):
    return [_unless(analysis, eqn, value, [eqn.params["dimension"]], f"along {analysis.entries}") for value in values]


@rule("top_k", "approx_top_k")
def _top_k(analysis, eqn, values):
    return _unless(analysis, eqn, values[0], [len(_shape(eqn.invars[0])) - 1], f"along {analysis.entries}")


@rule("fft")
def _fft(analysis, eqn, values):
    ndim = len(_shape(eqn.invars[0]))
    return _unless(
        analysis, eqn, values[0], range(ndim - len(eqn.params["fft_lengths"]), ndim), f"along {analysis.entries}"
    )


def _unless(analysis: Analysis, eqn: jec.JaxprEqn, value: Value, axes: Sequence[int], why: str) -> Value:
    """The value, which stays where it is, unless the axis is one of these."""
    if value.kind == "sum":
        return analysis.bad(eqn, "is not linear in a sum over time")
    if value.kind not in HAS_AXIS or value.axis not in axes:
        return value
    return analysis.bad(eqn, why) if value.kind == "along" else FREE


# --- parts and wholes -----------------------------------------------------------------------------


def _picked(analysis: Analysis, eqn: jec.JaxprEqn, value: Value, whole: bool) -> Value:
    """Of a part of an array: the value if the axis is whole; a key for one step is as good as one for the segment."""
    if value.kind not in HAS_AXIS or whole:
        return value
    if value.kind == "place":
        return FREE
    return FREE._replace(fresh=True) if _is_key(eqn.invars[0]) else analysis.bad(eqn, f"picks {analysis.entries}")


@rule("slice")
def _slice(analysis, eqn, values):
    value, params, shape = values[0], eqn.params, _shape(eqn.invars[0])
    axis, strides = value.axis, params["strides"]
    whole = value.kind not in HAS_AXIS or (
        (params["start_indices"][axis], params["limit_indices"][axis]) == (0, shape[axis])
        and (strides is None or strides[axis] == 1)
    )
    return _picked(analysis, eqn, value, whole)


@rule("dynamic_slice")
def _dynamic_slice(analysis, eqn, values):
    value = values[0]
    if any(index.kind != "free" for index in values[1:]):
        return UNKNOWN
    whole = value.kind not in HAS_AXIS or eqn.params["slice_sizes"][value.axis] == _shape(eqn.invars[0])[value.axis]
    return _picked(analysis, eqn, value, whole)


@rule("split")
def _split(analysis, eqn, values):
    return _unless(analysis, eqn, values[0], [eqn.params["axis"]], f"cuts {analysis.entries} apart")


@rule("concatenate")
def _concatenate(analysis, eqn, values):
    along = {value for value in values if value.kind in HAS_AXIS}
    if len(along) != 1 or any(value.kind == "sum" for value in values):
        return _joined(values) if not along else UNKNOWN
    return _unless(analysis, eqn, along.pop(), [eqn.params["dimension"]], f"joins along {analysis.entries}")


@rule("pad")
def _pad(analysis, eqn, values):
    value = values[0]
    padded = value.kind in HAS_AXIS and tuple(eqn.params["padding_config"][value.axis]) != (0, 0, 0)
    return analysis.bad(eqn, f"pads or cuts {analysis.entries}") if padded else value


@rule("dot_general")
def _dot(analysis, eqn, values):
    contracted, batch = eqn.params["dimension_numbers"]
    power = _power("mul", [value.power for value in values])
    if any(value.kind == "sum" for value in values):
        if sorted(value.kind for value in values) != ["free", "sum"]:
            return analysis.bad(eqn, "is not linear in a sum over time")
        return SUM._replace(power=power)
    places, offset = [], len(batch[0])
    for value, own, own_batch, v in zip(values, contracted, batch, eqn.invars, strict=True):
        free = [d for d in range(len(_shape(v))) if d not in own and d not in own_batch]
        if value.kind not in HAS_AXIS:
            places.append(None)
        elif value.axis in own:
            places.append("contracted" if value.kind == "along" else None)
        elif value.axis in own_batch:
            places.append(list(own_batch).index(value.axis))
        else:
            places.append(offset + free.index(value.axis))
        offset += len(free)
    wholes = [value for value in values if value.kind == "along"]
    if "contracted" in places:
        if len(wholes) == 2 and places[0] == places[1] and not analysis.apart:
            return SUM._replace(power=power)
        return analysis.bad(eqn, f"mixes {analysis.entries}") if wholes else FREE
    if len(wholes) == 2:
        return (
            wholes[0]._replace(axis=places[0], power=power)
            if places[0] == places[1]
            else analysis.bad(eqn, f"pairs {analysis.entries}")
        )
    along = [value.at(place) for value, place in zip(values, places, strict=True) if place is not None]
    if len(along) == 2 and along[0].axis == along[1].axis:
        return analysis.bad(eqn, "combines time steps with their place in the segment")
    return next((value for value in along if value.kind == "along"), along[0])._replace(power=power)


@rule("gather")
def _gather(analysis, eqn, values):
    of, at = values
    numbers, shape = eqn.params["dimension_numbers"], _shape(eqn.invars[0])
    kept = [d for d in range(len(_shape(eqn.outvars[0]))) if d not in numbers.offset_dims]
    if of.kind == "sum" or at.kind == "sum":
        return of if at.kind == "free" else analysis.bad(eqn, "is not linear in a sum over time")
    if of.kind in HAS_AXIS and of.axis in numbers.operand_batching_dims:
        place = numbers.operand_batching_dims.index(of.axis)
        return of.at(kept[numbers.start_indices_batching_dims[place]])
    if of.kind in HAS_AXIS:
        if of.axis in numbers.start_index_map or eqn.params["slice_sizes"][of.axis] != shape[of.axis]:
            return _picked(analysis, eqn, of, False)
        if at.kind in HAS_AXIS:
            return UNKNOWN
        dims = [d for d in range(len(shape)) if d not in numbers.collapsed_slice_dims + numbers.operand_batching_dims]
        return of.at(numbers.offset_dims[dims.index(of.axis)])
    return at.at(kept[at.axis]) if at.kind in HAS_AXIS else FREE


@rule("scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul", "scatter-min", "scatter-max")
def _scatter(analysis, eqn, values):
    of, numbers = values[0], eqn.params["dimension_numbers"]
    if of.kind in HAS_AXIS and of.axis in numbers.scatter_dims_to_operand_dims:
        return analysis.bad(eqn, f"changes single {analysis.entries}")
    return FREE if all(value.kind == "free" for value in values) else UNKNOWN


@rule("dynamic_update_slice")
def _update(analysis, eqn, values):
    of, new = values[:2]
    if of.kind in HAS_AXIS and _shape(eqn.invars[1])[of.axis] != _shape(eqn.invars[0])[of.axis]:
        return analysis.bad(eqn, f"changes single {analysis.entries}")
    return of if new.kind in ("free", of.kind) and of.kind != "free" else UNKNOWN


@rule("conv_general_dilated")
def _convolution(analysis, eqn, values):
    numbers = eqn.params["dimension_numbers"]
    value, kernel = values
    if value.kind == "along" and kernel.kind == "free" and value.axis == numbers.lhs_spec[0]:
        return value.at(numbers.out_spec[0])
    return analysis.bad(eqn, f"along {analysis.entries}") if value.kind == "along" else UNKNOWN


@rule("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min", "select_and_gather_add")
def _window(analysis, eqn, values):
    value = values[0]
    wide = value.kind in HAS_AXIS and eqn.params["window_dimensions"][value.axis] != 1
    return analysis.bad(eqn, f"along {analysis.entries}") if wide else value
