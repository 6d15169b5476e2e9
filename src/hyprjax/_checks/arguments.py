"""Checks of what a user passes in, from shapes and dtypes alone: one clear line instead of a JAX stack."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import PyTree

from hyprjax._segment import Carry


def describe(tree: PyTree) -> str:
    """Shapes and dtypes of a pytree, as in `{'u': float32[32,128]}`."""
    return str(jax.tree.map(lambda a: f"{jnp.result_type(a)}{list(jnp.shape(a))}", tree)).replace("'", "")


def choice(name: str, value: Any, allowed: tuple[str | None, ...]) -> None:
    """Refuses an option value that is not one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def function(transform: str, fn: Any) -> None:
    """Refuses what a transform cannot call."""
    if not callable(fn):
        raise TypeError(f"{transform} must be given a function (params, xs, ...), got a {type(fn).__name__}")


def positive_int(name: str, value: Any, *, optional: bool = False) -> Any:
    """The int that `value` is, Python's or NumPy's, of at least 1; None too if it is `optional`."""
    if value is None and optional:
        return None
    try:
        number = None if isinstance(value, bool | np.bool_) or value is None else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        kinds = "an int or None" if optional else "an int"
        raise TypeError(f"{name} must be {kinds}, got {value!r} of type {type(value).__name__}")
    if number < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return number


def trace_dtype(value: Any) -> str | None:
    """The name of the dtype, or None; refuses one that is not real floating: NumPy's float64 equals None."""
    if value is None:
        return None
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"trace_dtype must be a floating dtype such as jnp.bfloat16, got {value!r}")
    return dtype.name


def floating(name: str, tree: PyTree) -> None:
    """Refuses a pytree with a leaf that has no real gradient."""
    for path, leaf in tree_leaves_with_path(tree):
        try:
            dtype = jnp.result_type(leaf)
        except TypeError:
            raise TypeError(
                f"{name}{keystr(path)} is not an array but a {type(leaf).__name__}, and every leaf of {name} is "
                "differentiated; wrap a module of Equinox, as in eqx.filter_grad around hj.hypr(model), or split it: "
                "params, static = eqx.partition(module, eqx.is_inexact_array), and eqx.combine in the loss"
            ) from None
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name}{keystr(path)} has dtype {dtype}, but gradients need real floats; "
                "convert the leaf with jnp.asarray(leaf, jnp.float32) or pass it as an argument after xs"
            )


def outputs(name: str, tree: PyTree) -> None:
    """Refuses what a function returns beside arrays."""
    for path, leaf in tree_leaves_with_path(tree):
        try:
            jnp.result_type(leaf)
        except TypeError:
            raise TypeError(
                f"{name}: the function returns a {type(leaf).__name__} at result{keystr(path)}, but what it returns is "
                "put together from segments; return arrays only"
            ) from None


def time_axes(xs: PyTree, time_axis: Any) -> tuple[int, list[int | None]]:
    """The number of steps of `xs`, and the time axis of each leaf."""
    leaves = [(f"xs{keystr(path)}", leaf) for path, leaf in tree_leaves_with_path(xs)]
    if not leaves:
        raise ValueError("xs has no arrays; it must be a pytree of arrays with time as their leading axis (time_axis)")
    axes = [_axis(name, leaf, axis) for (name, leaf), axis in zip(leaves, _axes("xs", xs, time_axis), strict=True)]
    lengths = {name: jnp.shape(leaf)[axis] for (name, leaf), axis in zip(leaves, axes, strict=True) if axis is not None}
    if not lengths:
        raise ValueError("time_axis is None for every leaf of xs, so there is nothing to cut into segments")
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"the leaves of xs have different numbers of time steps: {lengths}; pass what has no time axis "
            "as an argument after xs, or give it a time_axis of None"
        )
    steps = next(iter(lengths.values()))
    if steps == 0:
        raise ValueError(f"xs is empty: its time axis, the leading one or time_axis, has length 0 ({describe(xs)})")
    return steps, axes


def _axes(name: str, tree: PyTree, axes: Any, option: str = "time_axis") -> list[Any]:
    """The entry of a prefix of `tree` for each of its leaves."""
    for axis in jax.tree.leaves(axes):
        if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
            raise TypeError(f"{option} must hold ints and None, got {axis!r} of type {type(axis).__name__}")
    absent = lambda axis: axis is None  # noqa: E731
    for_all = lambda axis, part: [axis] * len(jax.tree.leaves(part))  # noqa: E731
    try:
        spread = jax.tree.map(for_all, axes, tree, is_leaf=absent)
    except ValueError as error:
        raise ValueError(
            f"{option} must be an int or a pytree prefix of {name}, as in_axes of jax.vmap; got {axes!r} for {name} of "
            f"structure {jax.tree.structure(tree)}"
        ) from error
    return jax.tree.leaves(spread, is_leaf=absent)


def _axis(name: str, leaf: Any, axis: Any) -> int | None:
    if axis is None:
        return None
    ndim = jnp.ndim(leaf)
    if ndim == 0:
        raise ValueError(f"{name} is a scalar; every leaf needs time as its leading axis, or a time_axis of None")
    if not -ndim <= axis < ndim:
        raise ValueError(f"{name} has shape {jnp.shape(leaf)}, so its time_axis cannot be {axis}")
    return int(axis) % ndim


def out_time_axes(transform: str, results: PyTree, out_time_axis: Any, steps: int) -> tuple[int, ...]:
    """The time axis of each result of a model, from the results of a segment of so many steps."""
    checked = []
    axes = _axes("the outputs", results, out_time_axis, "out_time_axis")
    for (path, leaf), axis in zip(tree_leaves_with_path(results), axes, strict=True):
        ndim = len(leaf.shape)
        if axis is None or not -ndim <= axis < ndim or leaf.shape[axis] != steps:
            raise ValueError(
                f"output{keystr(path)} of the function given to {transform} has shape {tuple(leaf.shape)} on a segment "
                f"of {steps} steps, so no time axis at {axis}; every output needs one: reduce over time outside of "
                f"hj.{transform}, as in hj.{transform}(model)(params, xs).mean(0), or set out_time_axis"
            )
        checked.append(int(axis) % ndim)
    return tuple(checked)


def carry_and_others(transform: str, call: str, params: PyTree, carry: Any, xs: PyTree) -> None:
    """Refuses a carry that is not what `init` or `call` returned, and arguments in another order."""
    is_carry = lambda x: isinstance(x, Carry)  # noqa: E731
    holds_one = lambda tree: any(map(is_carry, jax.tree.leaves(tree, is_leaf=is_carry)))  # noqa: E731
    for name, value in (("params", params), ("xs", xs)):
        if holds_one(value):
            raise TypeError(f"{transform}: a carry was given as {name}; the order is {call}(params, carry, xs)")
    if isinstance(carry, tuple | list) and all(map(is_carry, carry)) and not is_carry(carry):
        for leaf in jax.tree.leaves(carry):
            if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
                raise TypeError(f"{transform}: the carry holds a {type(leaf).__name__} where it must hold an array")
        return
    if carry is None:
        slip, fix = "is None", "the first one is carry = init(params, xs)"
    elif is_carry(carry):
        slip, fix = "is that of one unroll call", "pass the whole tuple that init returns"
    elif holds_one(carry):
        slip, fix = "is inside of something else", f"unpack what {call} returns, as in result, carry = {call}(...)"
    elif isinstance(carry, tuple | list) and all(isinstance(x, dict) and x.keys() == set(Carry._fields) for x in carry):
        slip = "is a list of dicts, as a checkpoint restored without a target"
        fix = "restore it with one, such as jax.eval_shape(init, params, xs)"
    else:
        slip, fix = f"is a {type(carry).__name__}", f"it must be what init or {call} returned"
    raise TypeError(f"{transform}: the carry {slip}; {fix}")


def carry(transform: str, have: Any, want: tuple[Any, ...]) -> None:
    """Refuses a carry that is not one of these shapes."""
    if len(have) != len(want):
        raise ValueError(
            f"the function needs {len(want)} carries, one for each call of unroll, scan, step and delay, but was given "
            f"{len(have)}; the calls must be the same in every segment as when the carry was made, with the init of "
            f"{transform}"
        )
    for number, (own, rest) in enumerate(zip(have, want, strict=True), 1):
        if rest.traces is not None and own.traces is None:
            raise ValueError(
                f"the carry of unroll call number {number} holds no eligibility traces, it was made by stream; "
                "make it with the init of hypr_stream"
            )
        if describe((own.state, own.output)) != describe((rest.state, rest.output)):
            raise ValueError(
                f"unroll call number {number} does not fit its carry: the carry holds "
                f"{describe((own.state, own.output))}, the call needs {describe((rest.state, rest.output))}; cell, "
                "batch shape and dtype must be the same in every segment"
            )
        if rest.traces is not None and describe(own.traces) != describe(rest.traces):
            raise ValueError(
                f"the carry of unroll call number {number} holds eligibility traces of another layer, kind or dtype "
                "(traces, trace_rank, trace_dtype); make it with the init of the same hypr_stream"
            )


def loss(value: Any) -> None:
    """Refuses a loss that is not one real float."""
    if isinstance(value, tuple):
        raise TypeError("the loss function returned a tuple; for (loss, aux) pass has_aux=True")
    if not hasattr(value, "shape"):
        raise TypeError(f"the loss must be a scalar, got {type(value).__name__}")
    if value.shape != ():
        raise TypeError(f"the loss must be a scalar, got shape {value.shape}; reduce it, for example with .mean()")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"the loss must be a real float, got dtype {value.dtype}")


def loss_and_aux(value: Any) -> None:
    """Refuses the result of a loss function with `has_aux` that is not a pair."""
    if not (isinstance(value, tuple) and len(value) == 2):
        raise TypeError(f"with has_aux=True the loss function must return (loss, aux), got {type(value).__name__}")
    loss(value[0])
