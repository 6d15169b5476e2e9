"""`unroll`, the operation of programs that runs one layer over time.

Under `jax.vmap` the primitive has a batching rule. A batch of inputs becomes one more batch axis of the same `unroll`,
so that a vmapped model has the GEMMs of a batched one; a batch of parameters becomes an axis of an ensemble, over
which the equation is evaluated with `jax.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.extend.core as jec
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from hyprjax import _exact, _program, _segment, _sharding
from hyprjax._cell import Cell, Params
from hyprjax._program import Operation
from hyprjax._segment import Carry

unroll_p = jec.Primitive("unroll")
unroll_p.multiple_results = True


def unroll(
    cell: Cell, params: Params, inputs: PyTree[Float[Array, "t *batch _"]], resets: Bool[Array, "t *batch"] | None
) -> PyTree[Float[Array, "t *batch n"]]:
    """From rest; while a transform traces its function, one equation of the program."""
    if _program.in_body.value:
        raise ValueError(
            "unroll was called in the body of hyprjax.scan; there a layer makes one step at a time, with hyprjax.step"
        )
    operands, tree = jax.tree.flatten((params, inputs, resets))
    if not _program.tracing():
        return _from_rest(cell, tree, (), *operands)
    outputs = unroll_p.bind(*operands, cell=cell, tree=tree, ensemble=())
    return jax.tree.unflatten(_segment.structure(cell, params, inputs), outputs)


def over_ensemble(fn: Callable[..., Any], ensemble: Sequence[tuple[bool, ...]], *before: int) -> Callable[..., Any]:
    """`fn(*before, *operands)` for every member; each level says which operands differ between its members."""
    for level in reversed(ensemble):
        fn = jax.vmap(fn, in_axes=(*before, *[0 if differs else None for differs in level]))
    return fn


@partial(jax.jit, static_argnums=(0, 1, 2))
def _from_rest(cell: Cell, tree: Any, ensemble: Any, *operands: Array) -> PyTree:
    def one(*operands):
        params, inputs, resets = jax.tree.unflatten(tree, operands)
        start = _segment.rest(cell, params, inputs, None)
        return _segment.run(cell, params, inputs, start.state, start.output, resets)[0]

    return over_ensemble(one, ensemble)(*_sharding.vary(operands))


@unroll_p.def_abstract_eval
def _outputs(*operands, cell, tree, ensemble):
    return jax.make_jaxpr(partial(_from_rest, cell, tree, ensemble))(*operands).out_avals


def batch_of_layer(primitive, time, operands, dims, *, cell, tree, ensemble):
    """The batching rule of a layer: of `unroll`, whose signals have one axis of `time`, and of one step, with none."""
    (size,) = {x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None}
    of_params = len(jax.tree.leaves(jax.tree.unflatten(tree, operands)[0]))
    if all(d is None for d in dims[:of_params]):
        axes = [sum(level[i] for level in ensemble) + time for i in range(len(operands))]
        signals = [in_batch(operands[i], dims[i], axes[i], size) for i in range(of_params, len(operands))]
        outputs = primitive.bind(*operands[:of_params], *signals, cell=cell, tree=tree, ensemble=ensemble)
        return outputs, [len(ensemble) + time] * len(outputs)
    operands = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims, strict=True)]
    level = tuple(d is not None for d in dims)
    outputs = primitive.bind(*operands, cell=cell, tree=tree, ensemble=(level, *ensemble))
    return outputs, [0] * len(outputs)


def in_batch(x: Array, dim: int | None, axis: int, size: int) -> Array:
    """A batch of so many `x` along `axis`; `dim` is where it has one already."""
    if dim is None:
        return jnp.broadcast_to(jnp.expand_dims(x, axis), (*x.shape[:axis], size, *x.shape[axis:]))
    return jnp.moveaxis(x, dim, axis)


def layer_signals(params: Any) -> list[int]:
    """Which operands of a layer are inputs and resets."""
    _, *signals = jax.tree.unflatten(params["tree"], range(params["tree"].num_leaves))
    return jax.tree.leaves(signals)


def for_ensemble(one: Callable[..., Any], params: Any, operands: Sequence[Array], *entering: Any) -> Any:
    """`one(cell, params, inputs, resets, *entering)` for every member."""
    cell, tree, ensemble = (params[name] for name in ("cell", "tree", "ensemble"))
    call = lambda entering, *operands: one(cell, *jax.tree.unflatten(tree, operands), *entering)  # noqa: E731
    entering, operands = _sharding.vary((entering, operands))
    return over_ensemble(call, ensemble, 0)(entering, *operands)


def _unroll_rest(params, operands, options):
    def one(cell, layer, inputs, resets):
        start = _segment.rest(cell, layer, inputs, options)
        silence = jnp.broadcast_to(start.output, (len(jax.tree.leaves(inputs)[0]), *start.output.shape))
        structure = _segment.structure(cell, layer, inputs)
        return [silence] * structure.num_leaves, [start]

    return for_ensemble(one, params, operands)


def _unroll_run(params, operands, entries, options):
    def one(cell, layer, inputs, resets, carry):
        if options is None:
            outputs, state, output, _ = _segment.run(cell, layer, inputs, carry.state, carry.output, resets)
            return jax.tree.leaves(outputs), [Carry(state, output, None)], []
        if options.exact:
            outputs, carry = _exact.segment(cell, layer, inputs, carry, resets)
            return jax.tree.leaves(outputs), [carry], []
        outputs, carry, token = _segment.segment(cell, options, layer, inputs, carry, resets)
        return jax.tree.leaves(outputs), [carry], [token]

    return for_ensemble(one, params, operands, *entries)


_program.operation(
    unroll_p,
    Operation(layer_signals, lambda params: 1, _unroll_rest, _unroll_run),
    partial(batch_of_layer, unroll_p, 1),
)
