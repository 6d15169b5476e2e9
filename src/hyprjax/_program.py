"""A function that uses `unroll` as a program: a jaxpr in which every `unroll` is one equation.

A transform must give each `unroll` a carry, wherever in the user's code it stands: under `jax.jit`, under `jax.vmap`,
in the body of a `lax.scan` over layers. So it does not call the function, it traces it, and evaluates the jaxpr itself:

    trace       the function on the shapes of one segment; `unroll` binds `unroll_p`     `Program`
    evaluate    equation by equation, each `unroll` from its carry to the next           `evaluate`

Under `jax.vmap` the primitive has a batching rule. A batch of inputs becomes one more batch axis of the same `unroll`,
so that a vmapped model has the GEMMs of a batched one; a batch of parameters becomes an axis of an ensemble, over
which the equation is evaluated with `jax.vmap`. What is evaluated must be free of other `unroll`s than those in
equations that are entered here (`_ENTER`); a derivative or a branch that contains one is refused by name.

The carry is a flat tuple in the order in which the equations run. An `unroll` in the body of a `lax.scan` has one entry
there, stacked along the scan; one that runs for an ensemble has the ensemble's axes in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.extend.core as jec
import jax.numpy as jnp
from jax.extend import source_info_util
from jax.interpreters import ad, batching
from jaxtyping import Array, Bool, Float, PyTree

from hyprjax import _check, _segment, _sharding
from hyprjax._axis import scan_lengths
from hyprjax._cell import Cell, Params
from hyprjax._fingerprint import fingerprint
from hyprjax._segment import Carry, Options

# Whether a transform is tracing its function. A user context is part of jit's cache key, so what was compiled outside
# of a transform is traced again inside; a constant, so that it is traced once.
_tracing = jax.make_user_context(default_value=False)


def tracing() -> bool:
    """Whether a transform is tracing its function."""
    return _tracing.value


for name in ("_program", "_stream", "nnx"):  # the user's line is the one that called these
    source_info_util.register_exclusion(str(Path(__file__).with_name(f"{name}.py")))


# --- the primitive --------------------------------------------------------------------------------

unroll_p = jec.Primitive("unroll")
unroll_p.multiple_results = True


def unroll(
    cell: Cell, params: Params, inputs: PyTree[Float[Array, "t *batch _"]], resets: Bool[Array, "t *batch"] | None
) -> PyTree[Float[Array, "t *batch n"]]:
    """From rest; while a transform traces its function, one equation of the program."""
    operands, tree = jax.tree.flatten((params, inputs, resets))
    if not tracing():
        return _from_rest(cell, tree, (), *operands)
    outputs = unroll_p.bind(*operands, cell=cell, tree=tree, ensemble=())
    return jax.tree.unflatten(_segment.structure(cell, params, inputs), outputs)


def _over_ensemble(fn: Callable[..., Any], ensemble: Sequence[tuple[bool, ...]], *before: int) -> Callable[..., Any]:
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

    return _over_ensemble(one, ensemble)(*_sharding.vary(operands))


@unroll_p.def_abstract_eval
def _outputs(*operands, cell, tree, ensemble):
    return jax.make_jaxpr(partial(_from_rest, cell, tree, ensemble))(*operands).out_avals


def _batch(operands, dims, *, cell, tree, ensemble):
    (size,) = {x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None}
    of_params = len(jax.tree.leaves(jax.tree.unflatten(tree, operands)[0]))
    if all(d is None for d in dims[:of_params]):

        def behind_time(i, x, dim):
            axis = sum(level[i] for level in ensemble) + 1
            if dim is None:
                x, dim = jnp.broadcast_to(jnp.expand_dims(x, axis), (*x.shape[:axis], size, *x.shape[axis:])), axis
            return jnp.moveaxis(x, dim, axis)

        signals = [behind_time(i, operands[i], dims[i]) for i in range(of_params, len(operands))]
        outputs = unroll_p.bind(*operands[:of_params], *signals, cell=cell, tree=tree, ensemble=ensemble)
        return outputs, [len(ensemble) + 1] * len(outputs)
    operands = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims, strict=True)]
    level = tuple(d is not None for d in dims)
    outputs = unroll_p.bind(*operands, cell=cell, tree=tree, ensemble=(level, *ensemble))
    return outputs, [0] * len(outputs)


def _refuse_derivative(primals, tangents, **_):
    raise ValueError(
        "unroll was differentiated (jax.grad, jax.vjp, jax.jvp, ...) inside a function given to a hyprjax transform; "
        "the transform, or jax.grad around hj.hypr and hj.bptt, is what differentiates: return the value itself"
    )


batching.primitive_batchers[unroll_p] = _batch
ad.primitive_jvps[unroll_p] = _refuse_derivative


# --- tracing --------------------------------------------------------------------------------------


class Program(NamedTuple):
    """One segment of a function, of flat operands.

    Two programs of one fingerprint are equal, so that what is compiled for the one serves the other.

    Attributes:
      fingerprint: what it does.
      jaxpr: the function with `unroll` as equations; first its constants, then its operands.
      tree: the structure of its result.
    """

    fingerprint: Any
    jaxpr: jec.Jaxpr
    tree: Any

    def __hash__(self):
        """Of the fingerprint."""
        return hash(self.fingerprint)

    def __eq__(self, other):
        """Whether both do the same."""
        return isinstance(other, Program) and self.fingerprint == other.fingerprint


def trace(name: str, fn: Callable[..., PyTree], operands: Sequence[Any], steps: int) -> tuple[Program, list[Array]]:
    """The program of `fn(*operands)` on a segment of so many steps, and the arrays that `fn` closes over.

    Raises:
      ValueError: no `unroll` in it, one over other than these steps, or one where it cannot be given a carry; or the
        transform of this name stands inside of another.
    """
    if tracing():
        raise ValueError(
            f"{name} was called inside a function given to another hyprjax transform; a model has one transform, "
            "around all of its layers: call unroll there instead"
        )
    with _tracing(True):
        closed, result = jax.make_jaxpr(fn, return_shape=True)(*operands)
    tree = jax.tree.structure(result)
    program = Program((fingerprint(closed.jaxpr), tree), closed.jaxpr, tree)
    _check_unrolls(name, closed.jaxpr, steps)
    return program, closed.consts


def results(program: Program) -> PyTree:
    """The types of what a program returns."""
    return jax.tree.unflatten(program.tree, [v.aval for v in program.jaxpr.outvars])


def _unrolls(eqn: jec.JaxprEqn) -> int:
    """How many `unroll` equations are in an equation."""
    if eqn.primitive is unroll_p:
        return 1
    return sum(_unrolls(inner) for jaxpr in jec.jaxprs_in_params(eqn.params) for inner in jaxpr.eqns)


def unrolls(program: Program) -> int:
    """How many carries a program takes and leaves."""
    return sum(map(_unrolls, program.jaxpr.eqns))


def _check_unrolls(name: str, jaxpr: jec.Jaxpr, steps: int) -> None:
    """Refuses a program without `unroll`, with one in an equation that cannot be entered, or over other steps."""

    def check(jaxpr):
        found = 0
        for eqn in jaxpr.eqns:
            if eqn.primitive is unroll_p:
                _check_steps(eqn, steps)
                found += 1
            elif inside := _unrolls(eqn):
                if eqn.primitive.name not in _ENTER:
                    raise ValueError(
                        f"unroll was called under {_shown(eqn)} inside a function given to {name}, which cannot give "
                        f"it a carry there; {_REMEDY.get(eqn.primitive.name, 'call it outside of that operation')}"
                    )
                for inner in jec.jaxprs_in_params(eqn.params):
                    check(inner)
                found += inside
        return found

    if not check(jaxpr):
        raise ValueError(
            f"the function given to {name}, a hyprjax transform, must call hyprjax.unroll on at least one layer, "
            "and called none"
        )


def _check_steps(eqn: jec.JaxprEqn, steps: int) -> None:
    tree, ensemble = eqn.params["tree"], eqn.params["ensemble"]
    _, inputs, _ = jax.tree.unflatten(tree, range(tree.num_leaves))
    first = jax.tree.leaves(inputs)[0]
    ran = eqn.invars[first].aval.shape[sum(level[first] for level in ensemble)]
    if ran != steps:
        raise ValueError(
            f"unroll ran over {ran} time steps, but the segment it was called on has {steps} "
            f"({source_info_util.summarize(eqn.source_info)}); every unroll must run over exactly the steps of its "
            "segment. If the data has its batch first, pass time_axis=1; give a layer all steps at once instead of "
            "one after the other; and do not skip, pool or pad steps between layers"
        )


def _shown(eqn: jec.JaxprEqn) -> str:
    return f"{_NAMES.get(eqn.primitive.name, eqn.primitive.name)} ({source_info_util.summarize(eqn.source_info)})"


_NAMES = {"custom_jvp_call": "jax.custom_jvp", "custom_vjp_call": "jax.custom_vjp", "cond": "jax.lax.cond"}
_NAMES |= {"while": "jax.lax.while_loop", "shard_map": "jax.shard_map"}
_REMEDY = {
    "cond": "call it once, before, and choose between parameters, inputs or outputs with jnp.where",
    "while": "use jax.lax.scan, or jax.lax.fori_loop with a static number of rounds",
    "shard_map": "put shard_map outside, around the transform",
    "custom_jvp_call": "keep it out of the function with the derivative of its own",
    "custom_vjp_call": "keep it out of the function with the derivative of its own",
}


# --- evaluation -----------------------------------------------------------------------------------

Layer = Callable[[jec.JaxprEqn, list[Array], Any], tuple[PyTree, Any]]
"""What becomes of an `unroll` equation: its operands and what enters it to its outputs and what leaves it."""


def _interpret(jaxpr: jec.Jaxpr, operands: Sequence[Array], layer: Layer, entering: list[Any]) -> tuple[list, list]:
    """The results of a jaxpr (constants first among its operands) and what leaves its `unroll` equations."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], operands, strict=True))
    entering, leaving = list(entering), []
    for eqn in jaxpr.eqns:
        ins = [v.val if isinstance(v, jec.Literal) else values[v] for v in eqn.invars]
        inside = _unrolls(eqn)
        name_stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
        with source_info_util.user_context(eqn.source_info.traceback, name_stack=name_stack), eqn.ctx.manager:
            if inside:
                outs, left = _ENTER[eqn.primitive.name](eqn, ins, layer, entering[:inside])
                entering, leaving = entering[inside:], [*leaving, *left]
            else:
                outs = eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))
                outs = outs if eqn.primitive.multiple_results else [outs]
        values.update(zip(eqn.outvars, outs, strict=True))
    return [v.val if isinstance(v, jec.Literal) else values[v] for v in jaxpr.outvars], leaving


def _enter_unroll(eqn, operands, layer, entering):
    outputs, leaving = layer(eqn, operands, entering[0])
    return jax.tree.leaves(outputs), [leaving]


def _enter_jit(eqn, operands, layer, entering):
    closed = eqn.params["jaxpr"]
    return _interpret(closed.jaxpr, [*closed.consts, *operands], layer, entering)


def _enter_checkpoint(eqn, operands, layer, entering):
    inside = lambda operands, entering: _interpret(eqn.params["jaxpr"], operands, layer, entering)  # noqa: E731
    remade = jax.checkpoint(inside, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    return remade(operands, entering)


def _enter_scan(eqn, operands, layer, entering):
    """A scan over layers: their carries are scanned along."""
    closed, consts, carried = eqn.params["jaxpr"], *scan_lengths(eqn)
    consts, carry, xs = operands[:consts], operands[consts : consts + carried], operands[consts + carried :]

    def body(carry, at_layer):
        x, entering = at_layer
        outs, leaving = _interpret(closed.jaxpr, [*closed.consts, *consts, *carry, *x], layer, entering)
        return outs[:carried], (outs[carried:], leaving)

    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, leaving) = jax.lax.scan(body, carry, (xs, entering), **options)
    return [*carry, *ys], leaving


_ENTER: dict[str, Callable[..., tuple[list, list]]] = {
    "unroll": _enter_unroll,
    "jit": _enter_jit,
    "remat2": _enter_checkpoint,
    "checkpoint": _enter_checkpoint,
    "scan": _enter_scan,
}


def run(
    program: Program, operands: Sequence[Array], entering: Sequence[Any], one: Callable[..., tuple[PyTree, Any]]
) -> tuple[list, list]:
    """The results of a program and what leaves each `unroll`, in the order of the carry.

    `one(cell, entering, params, inputs, resets) -> (outputs, leaving)` is what an `unroll` does, for every member of
    its ensemble.
    """

    def layer(eqn, operands, entering):
        cell, tree, ensemble = (eqn.params[name] for name in ("cell", "tree", "ensemble"))
        call = lambda entering, *operands: one(cell, entering, *jax.tree.unflatten(tree, operands))  # noqa: E731
        entering, operands = _sharding.vary((entering, operands))
        return _over_ensemble(call, ensemble, 0)(entering, *operands)

    return _interpret(program.jaxpr, operands, layer, list(entering))


@partial(jax.jit, static_argnums=(0, 1))  # for the dead code elimination: only what the rest states need is computed
def rest(program: Program, options: Options | None, operands: Sequence[Array]) -> tuple[Carry, ...]:
    """The carry before the program has run at all; without traces if `options` is None."""

    def one(cell, carry, params, inputs, resets):
        start = _segment.rest(cell, params, inputs, options)
        silence = jnp.broadcast_to(start.output, (len(jax.tree.leaves(inputs)[0]), *start.output.shape))
        structure = _segment.structure(cell, params, inputs)
        return structure.unflatten([silence] * structure.num_leaves), start

    return tuple(run(program, operands, [None] * unrolls(program), one)[1])


def evaluate(
    program: Program, options: Options | None, operands: Sequence[Array], carries: Sequence[Carry]
) -> tuple[list[Array], tuple[Carry, ...], list[Array]]:
    """One segment from its carry.

    Args:
      program: what to run.
      options: of the segment operation, which is what its derivative is then; None for a plain scan without traces.
      operands: constants first, of one segment.
      carries: what the segment before left.

    Returns:
      The results, the next carry (that of the segment operation without its traces), and a token for each `unroll`
      (see `_segment.segment`; none without `options`).
    """

    def one(cell, carry, params, inputs, resets):
        if options is None:
            outputs, state, output, _ = _segment.run(cell, params, inputs, carry.state, carry.output, resets)
            return outputs, (Carry(state, output, None), ())
        result: Any = _segment.segment(cell, options, params, inputs, carry, resets)
        outputs, carry, token = result
        return outputs, (carry, token)

    results, leaving = run(program, operands, carries, one)
    return list(map(jnp.asarray, results)), tuple(carry for carry, _ in leaving), [token for _, token in leaving]


@lru_cache(maxsize=256)
def _shape_of_rest(program: Program, options: Options | None, avals: tuple[Any, ...]) -> tuple[Carry, ...]:
    return jax.eval_shape(partial(rest, program, options), avals)


def check_carry(
    name: str, program: Program, options: Options | None, operands: Sequence[Array], carry: Any
) -> tuple[Carry, ...]:
    """The carry a user gave, if it is one that this program takes."""
    want = _shape_of_rest(program, options, tuple(map(jax.typeof, operands)))
    _check.carry(name, carry, want)
    return tuple(carry)
