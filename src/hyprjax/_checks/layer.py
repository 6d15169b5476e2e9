"""Checks of a layer: that parameters, inputs and resets fit, and that its cell is one of neurons apart."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, PyTree

from hyprjax import _ports
from hyprjax._cell import Cell, Params, emit, is_cell
from hyprjax._checks.arguments import describe, floating
from hyprjax._checks.axis import FREE, Analysis, Value


def checked_layer(
    cell: Cell, params: Params, inputs: PyTree, resets: Array | None, *, in_transform: bool = False
) -> tuple[Params, PyTree, Array | None]:
    """Checks the arguments of `unroll` and brings parameters and inputs to their common dtype."""
    is_cell("unroll", cell)
    if not (isinstance(params, dict) and {"w_in", "neuron"} <= params.keys() <= {"w_in", "w_rec", "bias", "neuron"}):
        got = sorted(params) if isinstance(params, dict) else type(params).__name__
        raise ValueError(
            f"unroll: params must be a dict with keys w_in, neuron and optionally w_rec, bias, as init_layer returns; "
            f"got {got}"
        )
    params, inputs = _plain(params), _plain(inputs)
    synapses = {name: part for name, part in params.items() if name != "neuron"}
    for path, part in tree_leaves_with_path(synapses, is_leaf=lambda part: part is None):
        if part is None:
            at = keystr(path).replace("'", '"')
            raise ValueError(f"unroll: params{at} is None; leave the key out for a layer without it")
    _ports_of(cell, params, inputs)
    floating("params", params)
    if isinstance(inputs, dict):
        inputs = {port: _signal(f'inputs["{port}"]', x) for port, x in inputs.items()}
        shapes = {port: x.shape[:-1] for port, x in inputs.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"unroll: the inputs of all ports must have the same [T, *batch], got {shapes}")
        shape = next(iter(shapes.values()))
    else:
        inputs = _signal("inputs", inputs)
        shape = inputs.shape[:-1]
    _layer_shapes(cell, params, inputs)
    if resets is not None:
        resets = jnp.asarray(resets)
        if resets.dtype != bool:
            raise TypeError(f"unroll: resets must be bool, got {resets.dtype}; pass resets != 0 or resets.astype(bool)")
        if resets.shape != shape:
            raise ValueError(
                f"unroll: resets.shape = {resets.shape}, but it must be [T, *batch] = {shape} for inputs of "
                f"{describe(inputs)}"
            )

    dtypes = [leaf.dtype for leaf in jax.tree.leaves(jax.tree.map(jnp.asarray, params))]
    dtypes += [x.dtype for x in jax.tree.leaves(inputs) if jnp.issubdtype(x.dtype, jnp.floating)]
    dtype = jnp.result_type(*dtypes)
    params, inputs = jax.tree.map(lambda a: jnp.asarray(a, dtype), (params, inputs))
    try:
        hash(cell)
    except TypeError as error:
        raise TypeError(f"unroll: the cell must be hashable, of plain functions and constants: {error}") from None
    structure, n = jax.tree.structure(params["neuron"]), jax.tree.leaves(params["w_in"])[0].shape[1]
    try:
        _cell_shapes(cell, structure, shape[1:], n, dtype, jnp.result_type(float), "w_rec" in params)
    except ClosesOverTracerError:
        if in_transform:
            raise
    return params, inputs, resets


def _ports_of(cell: Cell, params: Params, inputs: PyTree) -> None:
    """Refuses parameters and inputs that do not fit the ports of the cell."""
    ports, name = set(cell.ports), f"the cell {cell.name!r}"
    for part in ("w_in", "w_rec", "bias", "inputs"):
        value = inputs if part == "inputs" else params.get(part)
        what = "inputs" if part == "inputs" else f'params["{part}"]'
        if isinstance(value, dict) and not ports:
            raise ValueError(f"unroll: {what} is a dict, but {name} has one current without ports; give an array")
        if isinstance(value, dict) and not (value and value.keys() <= ports):
            raise ValueError(
                f"unroll: {what} has the ports {', '.join(map(str, value)) or 'of nothing'}, but {name} has "
                f"{', '.join(sorted(ports))}"
            )
        if ports and part != "inputs" and value is not None and not isinstance(value, dict):
            raise ValueError(
                f"unroll: {what} must be a dict with an array for each port, {', '.join(sorted(ports))}, as {name} "
                "needs it and init_layer makes it"
            )
    if isinstance(inputs, dict) and inputs.keys() != params["w_in"].keys():
        raise ValueError(
            f"unroll: inputs are for the ports {', '.join(sorted(inputs))}, but params has w_in for "
            f"{', '.join(sorted(params['w_in']))}; give one array for each"
        )


def _signal(name: str, inputs: Any) -> Array:
    try:
        inputs = jnp.asarray(inputs)
    except (TypeError, ValueError):
        raise TypeError(f"unroll: {name} must be an array [T, *batch, n_in], got {type(inputs).__name__}") from None
    if jnp.issubdtype(inputs.dtype, jnp.complexfloating):
        raise TypeError(f"unroll: {name} are {inputs.dtype}; pass real inputs, for example real and imaginary parts")
    if inputs.ndim < 2:
        raise ValueError(f"unroll: {name} must have shape [T, *batch, n_in], got {name}.shape = {inputs.shape}")
    if inputs.shape[0] == 0:
        raise ValueError(f"unroll: {name} have no time steps, {name}.shape = {inputs.shape}")
    return inputs


def _layer_shapes(cell: Cell, params: Params, inputs: PyTree) -> None:
    n = jnp.shape(jax.tree.leaves(params["w_in"])[0])[-1:]
    for port in _ports.names(cell):
        at = "" if port is None else f'["{port}"]'
        w_in, w_rec, bias = (_ports.onto(port, params.get(part)) for part in _ports.PARTS)
        if w_in is not None:
            _input_weights(w_in, _ports.onto(port, inputs), at if isinstance(inputs, dict) else "", at, n)
        for part, value, shape in (("w_rec", w_rec, 2 * n), ("bias", bias, n)):
            if value is not None and jnp.shape(value) != shape:
                raise ValueError(
                    f'unroll: params["{part}"]{at}.shape = {jnp.shape(value)}, but it must be {shape} '
                    f'for params["w_in"]{at}.shape = {jnp.shape(w_in) if w_in is not None else "none"}'
                )
    for path, leaf in tree_leaves_with_path(params["neuron"]):
        if jnp.shape(leaf) != n:
            raise ValueError(
                f'unroll: params["neuron"]{keystr(path)} has shape {jnp.shape(leaf)}, but every neuron parameter must '
                f"be [n_out] = {n}; spread a shared value with jnp.full({n[0]}, value)"
            )


def _input_weights(w_in: Any, inputs: Array, of_inputs: str, at: str, n: tuple[int, ...]) -> None:
    shape = jnp.shape(w_in)
    if len(shape) != 2:
        raise ValueError(f'unroll: params["w_in"]{at} must be [n_in, n_out], got shape {shape}')
    if inputs.shape[-1] != shape[0]:
        raise ValueError(
            f'unroll: params["w_in"]{at} has {shape[0]} input rows but inputs{of_inputs} have {inputs.shape[-1]} '
            f"features (inputs{of_inputs}.shape = {inputs.shape}); make the layer with n_in={inputs.shape[-1]}"
        )
    if shape[1:] != n:
        raise ValueError(f'unroll: params["w_in"]{at} has {shape[1]} columns, but that of another port has {n[0]}')


class ClosesOverTracerError(ValueError):
    """A cell closes over a value that is being traced."""


@lru_cache(maxsize=256)  # a check takes milliseconds, and the same cells and shapes come again and again
def _cell_shapes(
    cell: Cell, neuron: Any, batch_shape: tuple[int, ...], n: int, dtype: Any, precision: Any, recurrent: bool
) -> None:
    """Runs the cell abstractly for one step and compares what goes in with what comes out.

    `neuron` is a structure; `precision`, float32 or float64, is what constants of the cell become.
    """
    like = jax.ShapeDtypeStruct((*batch_shape, n), dtype)
    neuron = neuron.unflatten([jax.ShapeDtypeStruct((n,), dtype)] * neuron.num_leaves)
    neuron_names('unroll: params["neuron"]', cell, neuron)
    rest = jax.eval_shape(lambda neuron: cell.rest(neuron, batch_shape, dtype), neuron)
    if not jax.tree.leaves(rest):
        raise ValueError("unroll: cell.rest returned no arrays; a cell needs at least one state variable")
    for path, leaf in tree_leaves_with_path(rest):
        if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
            raise _cell_error("rest", f"the state variable{keystr(path)}", leaf, like)
    current = _ports.join(cell, [like] * len(_ports.names(cell)))
    jaxpr, (state, output) = jax.make_jaxpr(cell.step, return_shape=True)(neuron, rest, current)
    if jax.tree.structure(state) != jax.tree.structure(rest):
        raise ValueError(
            f"unroll: cell.step returned a state of another structure, {describe(state)}, than cell.rest, "
            f"{describe(rest)}"
        )
    up, back = jax.eval_shape(partial(emit, cell), output)
    if not jax.tree.leaves(up):
        raise ValueError(f"unroll: the cell {cell.name!r} has no output; step must return (state, output)")
    if recurrent and back is None:
        raise ValueError(
            f"unroll: the layer has w_rec, but the output of the cell {cell.name!r} has several parts, "
            f"{describe(output)}; say which goes round with Cell.feedback, as in "
            "cell._replace(feedback=lambda output: output[0])"
        )
    for what, tree in (("state", state), ("output", output), ("output of Cell.sends", up), ("feedback", back)):
        for path, leaf in tree_leaves_with_path(tree):
            if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
                raise _cell_error("step", f"the {what}{keystr(path)}", leaf, like)
    for axis in range(like.ndim):
        _apart(cell, jaxpr, like, axis)
    if any(isinstance(const, Tracer) for const in [*jaxpr.consts, *_of_derivative(cell.step, neuron, rest, current)]):
        raise ClosesOverTracerError(
            f"unroll: step of the cell {cell.name!r} (or its derivative) closes over a traced array, which a hyprjax "
            "transform cannot follow into the segments; make it a neuron parameter: cell.init returns it as [n], step "
            "reads it from neuron"
        )


def neuron_names(name: str, cell: Cell, neuron: Any) -> None:
    """Refuses neuron parameters that are not those of the cell."""
    own = _own_neuron(cell)
    if own is not None and jax.tree.structure(_plain(own)) != jax.tree.structure(_plain(neuron)):
        has, needs = ({keystr(path) for path, _ in tree_leaves_with_path(tree)} for tree in (neuron, own))
        raise ValueError(
            f"{name} has {', '.join(sorted(has)) or 'nothing'}, but the cell {cell.name!r} has "
            f"{', '.join(sorted(needs)) or 'nothing'}; give the layer the cell that it was made with, by init_layer"
        )


@lru_cache(maxsize=256)
def _own_neuron(cell: Cell) -> Any:
    """The types of what `cell.init` makes."""
    try:
        return jax.eval_shape(lambda: cell.init(jax.random.key(0), 1))
    except Exception:  # an init of other arguments; parameters may be made by hand
        return None


def _plain(tree: Any) -> Any:
    """An `OrderedDict`, say, as a dict, whose gradient may be a dict, too."""
    return {name: _plain(part) for name, part in tree.items()} if isinstance(tree, dict) else tree


def _apart(cell: Cell, step: Any, like: jax.ShapeDtypeStruct, axis: int) -> None:
    """Refuses a step, `[n]` and `[*batch, n]` arrays to such, that mixes neurons or batch elements or draws numbers."""
    neurons, size = axis == like.ndim - 1, like.shape[axis]

    def entering(aval):
        place = axis - like.ndim + len(aval.shape)  # aligned at the right, as arrays are
        return Value("along", place) if size > 1 and place >= 0 and aval.shape[place] == size else FREE

    values = [entering(v.aval) for v in [*step.jaxpr.constvars, *step.jaxpr.invars]]
    analysis = Analysis("neurons" if neurons else "batch elements", (size, size), apart=True)
    for value in analysis.run(step.jaxpr, values):
        if value.kind == "bad":
            raise ValueError(
                f"unroll: step of the cell {cell.name!r} is not element-wise, which its eligibility traces need: "
                f"{value.reason}; let neurons act on each other through w_rec, take statistics outside of step, and "
                "give random numbers, as all that changes from step to step, as inputs"
            )


def _of_derivative(step: Any, *args: Any) -> list[Any]:
    """What the derivative of `step` closes over, which is more where a surrogate has parameters."""

    def pull(*args):
        outputs, pull = jax.vjp(step, *args)
        return pull(outputs)

    try:
        return jax.make_jaxpr(pull)(*args).consts
    except Exception:  # a step without a derivative may still be run
        return []


def _cell_error(function: str, what: str, got: Any, want: Any) -> Exception:
    kind = TypeError if got.dtype != want.dtype else ValueError
    return kind(
        f"unroll: cell.{function} returned {what} as {describe(got)}, but it must be [*batch, n] of the layer's dtype, "
        f"{describe(want)}; keep {function} element-wise and its constants Python numbers"
    )
