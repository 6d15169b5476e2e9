"""What each primitive of JAX makes of an axis: the rules of `axis`, one short function for a family of primitives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core as jec
import jax.numpy as jnp

from hyprjax._checks.axis import (
    DRAWS,
    ENTERED,
    FREE,
    HAS_AXIS,
    OTHER,
    SUM,
    UNKNOWN,
    Analysis,
    Value,
    power_of,
    rule,
    scan_lengths,
    shape_of,
)

# --- nested programs ------------------------------------------------------------------------------


@rule("jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")
def _enter(analysis, eqn, values):
    inner, twin = (one and one.params[ENTERED[eqn.primitive.name]] for one in (eqn, analysis.twin))
    consts = [FREE] * len(getattr(inner, "consts", ()))
    analysis.inside.append(eqn)
    results = analysis.run(_open(inner), [*consts, *values], _open(twin))
    analysis.inside.pop()
    return results


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


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


@rule("scan")
def _scan(analysis, eqn, values):
    (consts, carried), twin = scan_lengths(eqn), analysis.twin
    entering, carry = values[consts + carried :], list(values[consts : consts + carried])
    steps = [value for value in entering if value.kind in HAS_AXIS and value.axis == 0]
    if any(value.kind == "along" for value in steps):  # as by jax.lax.map, which keeps steps apart
        beside = [*values[:consts], *(value for value in entering if value not in steps)]
        if carried or any(value.kind in (*HAS_AXIS, "sum") for value in beside):
            return analysis.bad(eqn, f"runs along {analysis.entries}, and starts anew in every segment")
        if any(value.kind == "place" for value in steps):
            return analysis.bad(eqn, "combines time steps with their place in the segment")
    elif not steps and twin and twin.params["length"] != eqn.params["length"]:
        steps = [Value("place")]

    def one_step(value):
        if value in steps:
            return FREE._replace(fresh=value.kind == "along", power=value.power)
        return value.at(value.axis - 1) if value.kind in HAS_AXIS else value

    xs = list(map(one_step, entering))
    carry, outs = _until_fixed(analysis, eqn, "jaxpr", twin, values[:consts], carry, xs)
    ys = [v.at(v.axis + 1) if v.kind in HAS_AXIS else v for v in outs[carried:]]
    return [*carry, *[steps[0]._replace(power=v.power) if steps and v.kind == "free" else v for v in ys]]


def _until_fixed(analysis, eqn, body, twin, consts, carry, xs):
    """What holds of a loop's carry before every step, and the results of its body."""
    closed, outs = eqn.params[body], []
    for _ in range(len(carry) + 2):
        outs = analysis.run(
            closed.jaxpr, [*[FREE] * len(closed.consts), *consts, *carry, *xs], twin and twin.params[body].jaxpr
        )
        joined = list(map(_join, carry, outs))
        if joined == carry:
            break
        carry = joined
    return carry, outs


def _join(a: Value, b: Value) -> Value:
    """What holds of both."""
    if a == b or b.kind == "free" or a.kind == "bad":
        return a
    if a.kind == b.kind == "sum":
        return a._replace(power=OTHER)
    return b if a.kind == "free" or b.kind == "bad" else UNKNOWN


@rule("cond")
def _cond(analysis, eqn, values):
    if values[0].kind != "free":
        return analysis.bad(eqn, f"chooses by {analysis.entries}") if values[0].kind != "unknown" else UNKNOWN
    branches = eqn.params["branches"]
    twins = analysis.twin.params["branches"] if analysis.twin else [None] * len(branches)
    outs = [
        analysis.run(b.jaxpr, [*[FREE] * len(b.consts), *values[1:]], _open(twin))
        for b, twin in zip(branches, twins, strict=True)
    ]
    return [_joined(column) for column in zip(*outs, strict=True)]


def _joined(values: Sequence[Value]) -> Value:
    result = values[0]
    for value in values[1:]:
        result = _join(result, value)
    return result


@rule("while")
def _while(analysis, eqn, values):
    of_cond, of_body = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
    twin, carry = analysis.twin, values[of_body:]
    carry, _ = _until_fixed(analysis, eqn, "body_jaxpr", twin, values[of_cond:of_body], carry, [])
    _, (goes_on,) = _until_fixed(analysis, eqn, "cond_jaxpr", twin, values[:of_cond], [], carry)
    if goes_on.kind == "unknown":
        return UNKNOWN
    return carry if goes_on.kind == "free" else analysis.bad(eqn, f"goes on as long as {analysis.entries} say")


# --- random numbers -------------------------------------------------------------------------------


@rule("random_seed", "random_wrap", "random_unwrap", "random_split", "random_fold_in", "random_clone")
def _key(analysis, eqn, values):
    along = [value for value in values if value.kind in HAS_AXIS]
    return along[0] if along else FREE._replace(fresh=any(value.fresh for value in values))


@rule(*DRAWS)
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
    if not analysis.apart:
        return analysis.made(eqn, FREE)
    dimension = eqn.params["dimension"]
    return Value("along", dimension) if shape_of(eqn.outvars[0])[dimension] == analysis.lengths[0] else FREE


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
    value, old, new = values[0], shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
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
        return FREE._replace(power=OTHER if analysis.twin else None)
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
    last = len(shape_of(eqn.invars[0])) - 1
    return _unless(analysis, eqn, values[0], [last], f"along {analysis.entries}", kept=False)


@rule("fft")
def _fft(analysis, eqn, values):
    ndim = len(shape_of(eqn.invars[0]))
    return _unless(
        analysis, eqn, values[0], range(ndim - len(eqn.params["fft_lengths"]), ndim), f"along {analysis.entries}"
    )


def _unless(
    analysis: Analysis, eqn: jec.JaxprEqn, value: Value, axes: Sequence[int], why: str, *, kept: bool = True
) -> Value:
    """The value, which stays where it is, unless the axis is one of these; `kept` tells whether these stay whole."""
    if value.kind == "sum":
        return analysis.bad(eqn, "is not linear in a sum over time")
    if value.kind not in HAS_AXIS or value.axis not in axes:
        return value
    if value.kind == "along":
        return analysis.bad(eqn, why)
    return FREE if not kept and value == Value("place", value.axis) else value


# --- parts and wholes -----------------------------------------------------------------------------


def _picked(analysis: Analysis, eqn: jec.JaxprEqn, value: Value, whole: bool) -> Value:
    """Of a part of an array: the value if the axis is whole; a key for one step is as good as one for the segment."""
    if value.kind not in HAS_AXIS or whole:
        return value
    if value.kind == "place":
        return analysis.made(eqn, FREE)[0]
    return FREE._replace(fresh=True) if _is_key(eqn.invars[0]) else analysis.bad(eqn, f"picks {analysis.entries}")


@rule("slice")
def _slice(analysis, eqn, values):
    value, params, shape = values[0], eqn.params, shape_of(eqn.invars[0])
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
    whole = value.kind not in HAS_AXIS or eqn.params["slice_sizes"][value.axis] == shape_of(eqn.invars[0])[value.axis]
    return _picked(analysis, eqn, value, whole)


@rule("split")
def _split(analysis, eqn, values):
    return _unless(analysis, eqn, values[0], [eqn.params["axis"]], f"cuts {analysis.entries} apart", kept=False)


@rule("concatenate")
def _concatenate(analysis, eqn, values):
    value = analysis.combine(eqn, values)
    return (
        value
        if value.kind == "sum"
        else _unless(analysis, eqn, value, [eqn.params["dimension"]], f"joins along {analysis.entries}")
    )


@rule("stack")
def _stack(analysis, eqn, values):
    value, axis = analysis.combine(eqn, values), eqn.params["axis"]
    return value.at(value.axis + (value.axis >= axis)) if value.kind in HAS_AXIS else value


@rule("pad")
def _pad(analysis, eqn, values):
    value = values[0]
    padded = value.kind in HAS_AXIS and tuple(eqn.params["padding_config"][value.axis]) != (0, 0, 0)
    return analysis.bad(eqn, f"pads or cuts {analysis.entries}") if padded else value


@rule("dot_general")
def _dot(analysis, eqn, values):
    contracted, batch = eqn.params["dimension_numbers"]
    power = power_of("mul", [value.power for value in values])
    if any(value.kind == "sum" for value in values):
        if sorted(value.kind for value in values) != ["free", "sum"]:
            return analysis.bad(eqn, "is not linear in a sum over time")
        return SUM._replace(power=power)
    places, offset = [], len(batch[0])
    for value, own, own_batch, v in zip(values, contracted, batch, eqn.invars, strict=True):
        free = [d for d in range(len(shape_of(v))) if d not in own and d not in own_batch]
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
        return analysis.bad(eqn, f"mixes {analysis.entries}") if wholes else FREE._replace(power=power)
    if len(wholes) == 2:
        return (
            wholes[0]._replace(axis=places[0], power=power)
            if places[0] == places[1]
            else analysis.bad(eqn, f"pairs {analysis.entries}")
        )
    along = [value.at(place) for value, place in zip(values, places, strict=True) if place is not None]
    if not along:
        return FREE._replace(power=power)
    if len(along) == 2 and along[0].axis == along[1].axis:
        return analysis.bad(eqn, "combines time steps with their place in the segment")
    return next((value for value in along if value.kind == "along"), along[0])._replace(power=power)


@rule("gather")
def _gather(analysis, eqn, values):
    of, at = values
    numbers, shape = eqn.params["dimension_numbers"], shape_of(eqn.invars[0])
    kept = [d for d in range(len(shape_of(eqn.outvars[0]))) if d not in numbers.offset_dims]
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
    return at.at(kept[at.axis])


@rule("scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul", "scatter-min", "scatter-max")
def _scatter(analysis, eqn, values):
    (of, at, new), numbers, adds = values, eqn.params["dimension_numbers"], "add" in eqn.primitive.name
    changed, batch = numbers.scatter_dims_to_operand_dims, numbers.operand_batching_dims
    if of.kind in HAS_AXIS and of.axis in changed:
        return analysis.bad(eqn, f"changes single {analysis.entries}")
    if "sum" in (of.kind, new.kind):
        if at.kind != "free" or (not adds and eqn.primitive.name != "scatter"):
            return analysis.bad(eqn, "is not linear in a sum over time")
        return analysis.added(zip([eqn.invars[0], eqn.invars[2]], [of, new], strict=True))
    # Where the axes of what is put in lie in the whole: those of a window, those of a batch.
    window, sizes = numbers.update_window_dims, shape_of(eqn.invars[2])
    apart = [d for d in range(len(sizes)) if d not in window]
    kept = [d for d in range(len(shape_of(eqn.invars[0]))) if d not in (*numbers.inserted_window_dims, *batch)]
    to = dict(zip(window, kept, strict=True))
    of_batch = dict(zip(numbers.scatter_indices_batching_dims, batch, strict=True))
    to |= {apart[i]: d for i, d in of_batch.items()}
    if at.kind in HAS_AXIS and at.axis in of_batch:
        at = FREE if new.kind == "along" or of.kind == "along" else at.at(of_batch[at.axis])
    if new.kind in HAS_AXIS and new.axis in to:
        if shape_of(eqn.outvars[0])[to[new.axis]] != sizes[new.axis]:
            return analysis.bad(eqn, f"changes single {analysis.entries}")
        new = new.at(to[new.axis])
    elif new.kind in HAS_AXIS or at.kind in HAS_AXIS:  # many steps into one place
        if "along" not in (new.kind, at.kind):
            return UNKNOWN
        if not adds or of.kind != "free" or "place" in (new.kind, at.kind):
            return analysis.bad(eqn, f"puts many {analysis.entries} into one place")
        return analysis.added(zip([eqn.invars[0], eqn.invars[2]], [of, SUM._replace(power=new.power)], strict=True))
    return analysis.combine(eqn, [of, at, new])


@rule("cholesky", "lu", "qr", "geqrf", "eigh", "eig", "svd", "schur", "triangular_solve")
def _matrices(analysis, eqn, values):
    if any(value.kind == "sum" for value in values):
        linear = eqn.primitive.name == "triangular_solve" and values[0].kind == "free"
        return values[1] if linear else analysis.bad(eqn, "is not linear in a sum over time")
    value = _joined(values)
    return _unless(
        analysis, eqn, value, [len(shape_of(eqn.invars[0])) - i for i in (1, 2)], f"mixes {analysis.entries}"
    )


@rule("dynamic_update_slice")
def _update(analysis, eqn, values):
    of, new, *starts = values
    if any(start.kind != "free" for start in starts):
        return UNKNOWN
    sizes = zip(shape_of(eqn.invars[0]), shape_of(eqn.invars[1]), strict=True)
    cut = [d for d, (old, part) in enumerate(sizes) if old != part]
    if any(value.kind in HAS_AXIS and value.axis in cut for value in (of, new)):
        return analysis.bad(eqn, f"changes single {analysis.entries}")
    return analysis.combine(eqn, [of, new])


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
