"""Checks of what a user passes in, from shapes and dtypes alone: one clear line instead of a JAX stack."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, PyTree

from hyprjax._cell import Cell, Params


def describe(tree: PyTree) -> str:
    """Shapes and dtypes of a pytree, as in `{'u': float32[32,128]}`."""
    return str(jax.tree.map(lambda a: f"{jnp.result_type(a)}{list(jnp.shape(a))}", tree)).replace("'", "")


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Refuses an option value that is not one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def segment_length(value: Any) -> None:
    """Refuses a segment length that is neither None nor an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | None):
        raise TypeError(f"segment_length must be an int or None, got {value!r} of type {type(value).__name__}")
    if value is not None and value < 1:
        raise ValueError(f"segment_length must be at least 1, got {value}")


def trace_dtype(value: Any) -> Any:
    """The dtype that `value` names, or None; refuses one that is not real floating."""
    if value is None:
        return None
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"trace_dtype must be a floating dtype such as jnp.bfloat16, got {value!r}")
    return dtype


def floating(name: str, tree: PyTree) -> None:
    """Refuses a pytree with a leaf that has no real gradient."""
    for path, leaf in tree_leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{name}{keystr(path)} has dtype {dtype}, but gradients need real floats; "
                "convert the leaf with jnp.asarray(leaf, jnp.float32) or pass it as an argument after xs"
            )


def time_steps(name: str, tree: PyTree) -> int:
    """The length of the leading axis all leaves share."""
    leaves = tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{name} has no arrays; it must be a pytree of arrays with time as their leading axis")
    lengths = {}
    for path, leaf in leaves:
        if jnp.ndim(leaf) == 0:
            raise ValueError(f"{name}{keystr(path)} is a scalar; every leaf needs time as its leading axis")
        lengths[f"{name}{keystr(path)}"] = jnp.shape(leaf)[0]
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"the leaves of {name} have different numbers of time steps: {lengths}; pass what has no time axis "
            f"as an argument after {name}"
        )
    steps = next(iter(lengths.values()))
    if steps == 0:
        raise ValueError(f"{name} is empty: its leading time axis has length 0 ({describe(tree)})")
    return steps


def loss(value: Any) -> None:
    """Refuses a loss that is not one real float."""
    if isinstance(value, tuple):
        raise TypeError("the loss function returned a tuple; for (loss, aux) pass has_aux=True")
    if jnp.shape(value) != ():
        raise TypeError(f"the loss must be a scalar, got shape {jnp.shape(value)}; reduce it, for example with .mean()")
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise TypeError(f"the loss must be a real float, got dtype {jnp.result_type(value)}")


def loss_and_aux(value: Any) -> None:
    """Refuses the result of a loss function with `has_aux` that is not a pair."""
    if not (isinstance(value, tuple) and len(value) == 2):
        raise TypeError(f"with has_aux=True the loss function must return (loss, aux), got {type(value).__name__}")
    loss(value[0])


def layer(cell: Cell, params: Params, inputs: Array, resets: Array | None) -> tuple[Params, Array, Array | None]:
    """Checks the arguments of `unroll` and brings parameters and inputs to their common dtype."""
    if not (isinstance(params, dict) and {"w_in", "neuron"} <= params.keys() <= {"w_in", "w_rec", "bias", "neuron"}):
        got = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(
            f"unroll: params must be a dict with keys w_in, neuron and optionally w_rec, bias, as init_layer returns; "
            f"got {got}"
        )
    floating("params", params)
    inputs = jnp.asarray(inputs)
    if jnp.issubdtype(inputs.dtype, jnp.complexfloating):
        raise TypeError(f"unroll: inputs are {inputs.dtype}; pass real inputs, for example real and imaginary parts")
    if inputs.ndim < 2:
        raise ValueError(f"unroll: inputs must have shape [T, *batch, n_in], got inputs.shape = {inputs.shape}")
    if inputs.shape[0] == 0:
        raise ValueError(f"unroll: inputs have no time steps, inputs.shape = {inputs.shape}")
    _layer_shapes(params, inputs)
    if resets is not None:
        resets = jnp.asarray(resets)
        if resets.dtype != bool:
            raise TypeError(f"unroll: resets must be bool, got {resets.dtype}; pass resets != 0 or resets.astype(bool)")
        if resets.shape != inputs.shape[:-1]:
            raise ValueError(
                f"unroll: resets.shape = {resets.shape}, but it must be [T, *batch] = {inputs.shape[:-1]} "
                f"for inputs.shape = {inputs.shape}"
            )

    dtypes = [leaf.dtype for leaf in jax.tree.leaves(jax.tree.map(jnp.asarray, params))]
    if jnp.issubdtype(inputs.dtype, jnp.floating):
        dtypes.append(inputs.dtype)
    dtype = jnp.result_type(*dtypes)
    params, inputs = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, inputs))
    _cell_shapes(cell, params, inputs)
    return params, inputs, resets


def _layer_shapes(params: Params, inputs: Array) -> None:
    if jnp.ndim(params["w_in"]) != 2:
        raise ValueError(f'unroll: params["w_in"] must be [n_in, n_out], got shape {jnp.shape(params["w_in"])}')
    n_in, n = jnp.shape(params["w_in"])
    if inputs.shape[-1] != n_in:
        raise ValueError(
            f'unroll: params["w_in"] has {n_in} input rows but inputs have {inputs.shape[-1]} features '
            f"(inputs.shape = {inputs.shape}); make the layer with n_in={inputs.shape[-1]}"
        )
    for name, shape in (("w_rec", (n, n)), ("bias", (n,))):
        if name in params and jnp.shape(params[name]) != shape:
            raise ValueError(
                f'unroll: params["{name}"].shape = {jnp.shape(params[name])}, but it must be {shape} '
                f'for params["w_in"].shape = {(n_in, n)}'
            )
    for path, leaf in tree_leaves_with_path(params["neuron"]):
        if jnp.shape(leaf) != (n,):
            raise ValueError(
                f'unroll: params["neuron"]{keystr(path)} has shape {jnp.shape(leaf)}, but every neuron parameter must '
                f"be [n_out] = {(n,)}; spread a shared value with jnp.full({n}, value)"
            )


def _cell_shapes(cell: Cell, params: Params, inputs: Array) -> None:
    """Runs the cell abstractly for one step and compares what goes in with what comes out."""
    batch_shape, n = inputs.shape[1:-1], jnp.shape(params["w_in"])[1]
    like = jax.ShapeDtypeStruct((*batch_shape, n), inputs.dtype)
    rest = jax.eval_shape(lambda neuron: cell.rest(neuron, batch_shape, inputs.dtype), params["neuron"])
    if not jax.tree.leaves(rest):
        raise ValueError("unroll: cell.rest returned no arrays; a cell needs at least one state variable")
    for path, leaf in tree_leaves_with_path(rest):
        if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
            raise _cell_error("rest", f"the state variable{keystr(path)}", leaf, like)
    state, output = jax.eval_shape(cell.step, params["neuron"], rest, like)
    if jax.tree.structure(state) != jax.tree.structure(rest):
        raise ValueError(
            f"unroll: cell.step returned a state of another structure, {describe(state)}, than cell.rest, "
            f"{describe(rest)}"
        )
    for path, leaf in tree_leaves_with_path({"state": state, "output": output}):
        if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
            raise _cell_error("step", f"the {path[0].key}{keystr(path[1:])}", leaf, like)


def _cell_error(function: str, what: str, got: Any, want: Any) -> Exception:
    kind = TypeError if got.dtype != want.dtype else ValueError
    return kind(
        f"unroll: cell.{function} returned {what} as {describe(got)}, but it must be [*batch, n] of the layer's dtype, "
        f"{describe(want)}; keep {function} element-wise and its constants Python numbers"
    )
