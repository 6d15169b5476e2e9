"""A function that uses `unroll` as a program: a jaxpr in which every `unroll` is one equation.

A transform must give each `unroll` a carry, wherever in the user's code it stands: under `jax.jit`, under `jax.vmap`,
in the body of a `lax.scan` over layers. So it does not call the function, it traces it, and evaluates the jaxpr itself:

    trace       the function on the shapes of one segment; `unroll` binds `unroll_p`     `Program`
    evaluate    equation by equation, each `unroll` from its carry to the next           `evaluate`

`unroll` is one `Operation`, something that continues from segment to segment: see `_unroll`, and `_wiring` and `_delay`
for the others.

What is evaluated must be free of other `unroll`s than those in equations that are entered here (`_ENTER`); a derivative
or a branch that contains one is refused by name.

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
from jaxtyping import Array, PyTree

from hyprjax._checks import arguments
from hyprjax._checks.axis import scan_lengths
from hyprjax._fingerprint import fingerprint
from hyprjax._segment import Carry, Options

# Whether a transform is tracing its function. A user context is part of jit's cache key, so what was compiled outside
# of a transform is traced again inside; a constant, so that it is traced once.
_tracing = jax.make_user_context(default_value=False)
in_body = jax.make_user_context(default_value=False)  # the same of the body of `hyprjax.scan`


def tracing() -> bool:
    """Whether a transform is tracing its function."""
    return _tracing.value


for name in ("_program", "_unroll", "_stream", "nnx"):  # the user's line is the one that called these
    source_info_util.register_exclusion(str(Path(__file__).with_name(f"{name}.py")))


# --- operations -----------------------------------------------------------------------------------


class Operation(NamedTuple):
    """How an equation continues from segment to segment. Its parameters come as a dict, its operands as a list.

    Attributes:
      signals: `params -> indices` of the operands whose leading axis is time.
      entries: `params -> int`, how many entries of the carry are its own.
      rest: `(params, operands, options) -> (outputs, entries)` before the first segment; of the outputs only types
        matter.
      run: `(params, operands, entries, options) -> (outputs, entries, tokens)`, one segment; tokens as of
        `_segment.segment`. Without `options`, or exactly, its derivative is the ordinary one.
    """

    signals: Callable[[Any], Sequence[int]]
    entries: Callable[[Any], int]
    rest: Callable[[Any, Sequence[Array], Options | None], tuple[list[Array], list[Carry]]]
    run: Callable[[Any, Sequence[Array], list[Carry], Options | None], tuple[list[Array], list[Carry], list[Array]]]


OPERATIONS: dict[str, Operation] = {}  # by name of the primitive


def _refuse_derivative(name, primals, tangents, **_):
    raise ValueError(
        f"{name} was differentiated (jax.grad, jax.vjp, jax.jvp, ...) inside a function given to a hyprjax transform; "
        "the transform, or jax.grad around hj.hypr and hj.bptt, is what differentiates: return the value itself"
    )


def operation(primitive: jec.Primitive, made: Operation, batch: Callable[..., Any]) -> None:
    """Makes a primitive an operation of programs."""
    OPERATIONS[primitive.name] = made
    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = partial(_refuse_derivative, primitive.name)


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
      ValueError: no operation in it, one over other than these steps, or one where it cannot be given a carry; or the
        transform of this name stands inside of another.
    """
    if tracing():
        raise ValueError(
            f"{name} was called inside a function given to another hyprjax transform; a model has one transform, "
            "around all of its layers: call unroll there instead"
        )

    def outputs(*operands):
        result = fn(*operands)
        arguments.outputs(name, result)
        return result

    with _tracing(True):
        closed, result = jax.make_jaxpr(outputs, return_shape=True)(*operands)
    tree = jax.tree.structure(result)
    program = Program((fingerprint(closed.jaxpr), tree), closed.jaxpr, tree)
    _check_unrolls(name, closed.jaxpr, steps)
    return program, closed.consts


def results(program: Program) -> PyTree:
    """The types of what a program returns."""
    return jax.tree.unflatten(program.tree, [v.aval for v in program.jaxpr.outvars])


def _entries(eqn: jec.JaxprEqn) -> int:
    """How many entries of the carry belong to an equation."""
    if made := OPERATIONS.get(eqn.primitive.name):
        return made.entries(eqn.params)
    return sum(_entries(inner) for jaxpr in jec.jaxprs_in_params(eqn.params) for inner in jaxpr.eqns)


def entries(program: Program) -> int:
    """How many carries a program takes and leaves."""
    return sum(map(_entries, program.jaxpr.eqns))


def _check_unrolls(name: str, jaxpr: jec.Jaxpr, steps: int) -> None:
    """Refuses a program without `unroll`, with one in an equation that cannot be entered, or over other steps."""

    def check(jaxpr):
        found = 0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in OPERATIONS:
                _check_steps(eqn, steps)
                found += 1
            elif inside := _entries(eqn):
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
    name, ensemble = eqn.primitive.name, eqn.params.get("ensemble", ())
    first = OPERATIONS[name].signals(eqn.params)[0]
    signal: Any = eqn.invars[first].aval
    ran = signal.shape[sum(level[first] for level in ensemble)]
    if ran != steps:
        raise ValueError(
            f"{name} ran over {ran} time steps, but the segment it was called on has {steps} "
            f"({source_info_util.summarize(eqn.source_info)}); every {name} must run over exactly the steps of its "
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


class Evaluation(NamedTuple):
    """How the equations of a jaxpr are evaluated.

    Attributes:
      operation: `(equation, operands, entries) -> (outputs, leaving)`, of those with entries of the carry; `leaving` is
        a list.
      bind: `(equation, operands) -> outputs`, of all others.
      remat: whether `jax.checkpoint` does what it does.
    """

    operation: Callable[[jec.JaxprEqn, list[Any], list[Any]], tuple[list[Any], list[Any]]]
    bind: Callable[[jec.JaxprEqn, list[Any]], list[Any]]
    remat: bool = True


def bind(eqn: jec.JaxprEqn, operands: list[Any]) -> list[Any]:
    """An equation as it is."""
    outs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return outs if eqn.primitive.multiple_results else [outs]


def interpret(
    jaxpr: jec.Jaxpr, operands: Sequence[Any], how: Evaluation, entering: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """The results of a jaxpr (constants first among its operands) and what leaves its operations."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], operands, strict=True))
    entering, leaving = list(entering), []
    for eqn in jaxpr.eqns:
        ins = [v.val if isinstance(v, jec.Literal) else values[v] for v in eqn.invars]
        inside = _entries(eqn)
        name_stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
        with source_info_util.user_context(eqn.source_info.traceback, name_stack=name_stack), eqn.ctx.manager:
            if inside:
                enter = _ENTER.get(eqn.primitive.name, _enter_operation)
                outs, left = enter(eqn, ins, how, entering[:inside])
                entering, leaving = entering[inside:], [*leaving, *left]
            else:
                outs = how.bind(eqn, ins)
        values.update(zip(eqn.outvars, outs, strict=True))
    return [_constant(v.val, v.aval) if isinstance(v, jec.Literal) else values[v] for v in jaxpr.outvars], leaving


def _constant(value: Any, aval: Any) -> Array:
    return jnp.asarray(value, aval.dtype)


def _enter_operation(eqn, operands, how, entering):
    return how.operation(eqn, operands, entering)


def _enter_jit(eqn, operands, how, entering):
    closed = eqn.params["jaxpr"]
    return interpret(closed.jaxpr, [*closed.consts, *operands], how, entering)


def _enter_checkpoint(eqn, operands, how, entering):
    inside = lambda operands, entering: interpret(eqn.params["jaxpr"], operands, how, entering)  # noqa: E731
    if not how.remat:
        return inside(operands, entering)
    remade = jax.checkpoint(inside, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])
    return remade(operands, entering)


def _enter_scan(eqn, operands, how, entering):
    """A scan over layers: their carries are scanned along."""
    closed, consts, carried = eqn.params["jaxpr"], *scan_lengths(eqn)
    consts, carry, xs = operands[:consts], operands[consts : consts + carried], operands[consts + carried :]

    def body(carry, at_layer):
        x, entering = at_layer
        outs, leaving = interpret(closed.jaxpr, [*closed.consts, *consts, *carry, *x], how, entering)
        return outs[:carried], (outs[carried:], leaving)

    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, leaving) = jax.lax.scan(body, carry, (xs, entering), **options)
    return [*carry, *ys], leaving


_ENTER: dict[str, Callable[..., tuple[list, list]]] = {
    "jit": _enter_jit,
    "remat2": _enter_checkpoint,
    "checkpoint": _enter_checkpoint,
    "scan": _enter_scan,
}

Visit = Callable[[str, Any, list[Array], list[Any]], tuple[list[Array], list[Any]]]
"""What becomes of an operation: its name, parameters, operands and entries to its outputs and a list of what leaves."""


def run(program: Program, operands: Sequence[Array], entering: Sequence[Any], visit: Visit) -> tuple[list, list]:
    """The results of a program and what leaves each operation, in the order of the carry."""
    operation = lambda eqn, operands, entering: visit(eqn.primitive.name, eqn.params, operands, entering)  # noqa: E731
    return interpret(program.jaxpr, operands, Evaluation(operation, bind), list(entering))


@partial(jax.jit, static_argnums=(0, 1))  # for the dead code elimination: only what the rest states need is computed
def rest(program: Program, options: Options | None, operands: Sequence[Array]) -> tuple[Carry, ...]:
    """The carry before the program has run at all; without traces if `options` is None."""

    def visit(name, params, operands, entering):
        return OPERATIONS[name].rest(params, operands, options)

    return tuple(run(program, operands, [None] * entries(program), visit)[1])


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
      The results, the next carry (that of the segment operation without its traces), and the tokens (see
      `_segment.segment`; none without `options`).
    """

    def visit(name, params, operands, entering):
        outputs, carries, tokens = OPERATIONS[name].run(params, operands, entering, options)
        return outputs, [(carry, tokens[i : i + 1]) for i, carry in enumerate(carries)]

    results, leaving = run(program, operands, carries, visit)
    tokens = [token for _, of_entry in leaving for token in of_entry]
    return list(map(jnp.asarray, results)), tuple(carry for carry, _ in leaving), tokens


@lru_cache(maxsize=256)
def _shape_of_rest(program: Program, options: Options | None, avals: tuple[Any, ...]) -> tuple[Carry, ...]:
    return jax.eval_shape(partial(rest, program, options), avals)


def check_carry(
    name: str, program: Program, options: Options | None, operands: Sequence[Array], carry: Any
) -> tuple[Carry, ...]:
    """The carry a user gave, if it is one that this program takes."""
    want = _shape_of_rest(program, options, tuple(map(jax.typeof, operands)))
    arguments.carry(name, carry, want)
    return tuple(carry)
