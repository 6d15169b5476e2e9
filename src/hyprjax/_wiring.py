"""What keeps a state besides `unroll`: `scan`, with `step` in its body. With it, any wiring.

`scan` is `jax.lax.scan` as an operation of a program (`_program`), which continues from segment to segment. Its body
may step layers, whose neurons' state it keeps: a network is written as its step function. A segment of one, with `c`
the carry of the scan and `s` the states of its layers:

    S-stage    c_t, s_t = body(c_{t-1}, s_{t-1}, x_t)                      one `lax.scan`, which records c and s
    P-stage    the body of all steps at once, the recorded `c` a constant,
               each layer the P-stage of `_segment` on what it recorded

So credit goes through each neuron's own state and through what is computed within a step, and the P-stage has no loop
over time but that in `_segment`. Credit through `c` is cut, which makes a recurrent layer written this way the same as
`unroll` with `w_rec`. With `recurrent_credit="segment"` the scan is differentiated as it is, and what the state at the
start of the segment owes to the parameters, `q_0·ε_0`, comes from the traces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend.core as jec
import jax.numpy as jnp
from jax.core import AbstractValue, eval_jaxpr
from jax.extend import source_info_util
from jax.lax import stop_gradient
from jax.tree_util import keystr, tree_leaves_with_path
from jaxtyping import Array, Bool, Float, PyTree

from hyprjax import _ports, _program, _recursion, _segment, _sharding, _unroll
from hyprjax._cell import Cell, Params
from hyprjax._checks import arguments
from hyprjax._checks.layer import checked_layer
from hyprjax._program import Evaluation, Operation, bind, interpret
from hyprjax._segment import Carry, Past

source_info_util.register_exclusion(__file__)


# --- a step of a layer ----------------------------------------------------------------------------

step_p = jec.Primitive("step")
step_p.multiple_results = True


def step(
    cell: Cell,
    params: Params,
    inputs: PyTree[Float[Array, "*batch _"]],
    *,
    reset: Bool[Array, "*batch"] | None = None,
) -> PyTree[Float[Array, "*batch n_out"]]:
    """One step of a layer, in the body of `hyprjax.scan`, which keeps the neurons' state.

    Args:
      cell: the neuron model.
      params: the layer's parameters, as `unroll` takes them; the same at every step. With `w_rec` the layer's own last
        output comes back through it.
      inputs: inputs of this step.
      reset: True puts state, last output and traces back to rest before the step.

    Returns:
      The neurons' outputs at this step.

    Raises:
      ValueError: outside of the body of `hyprjax.scan`, or as `unroll`.
      TypeError: as `unroll`.

    Examples:
      Two populations that excite and inhibit each other:

      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell, keys = hj.lif(), jax.random.split(jax.random.key(0))
      >>> params = {"exc": hj.init_layer(keys[0], cell, 3 + 8, 20), "inh": hj.init_layer(keys[1], cell, 20, 8)}
      >>> def network(params, xs):
      ...     def body(inhibition, x):
      ...         excitation = hj.step(cell, params["exc"], jnp.concatenate([x, -inhibition], axis=-1))
      ...         return hj.step(cell, params["inh"], excitation), excitation
      ...     return hj.scan(body, jnp.zeros((*xs.shape[1:-1], 8)), xs)[1]
      >>> xs = jnp.ones((100, 4, 3))
      >>> hj.hypr(network, segment_length=25)(params, xs).shape
      (100, 4, 20)
    """
    if not _program.in_body.value:
        raise ValueError("step was called outside of the body of hyprjax.scan, which keeps its state; see hyprjax.scan")
    one = lambda x: jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], x)  # noqa: E731
    batch_shape = jnp.shape(jax.tree.leaves(inputs)[0])[:-1]
    if reset is not None and jnp.shape(reset) != batch_shape:
        raise ValueError(f"step: reset has shape {jnp.shape(reset)}, but it must be [*batch] = {batch_shape}")
    checked = checked_layer(cell, params, one(inputs), one(reset), in_transform=True)
    params, inputs, reset = checked[0], *(jax.tree.map(lambda leaf: leaf[0], x) for x in checked[1:])
    operands, tree = jax.tree.flatten((params, inputs, reset))
    outputs = step_p.bind(*operands, cell=cell, tree=tree, ensemble=())
    return jax.tree.unflatten(_segment.structure(cell, params, inputs), outputs)


def _first(cell, params, inputs, reset):
    """The step from rest, for the types."""
    start = _segment.rest(cell, params, jax.tree.map(lambda x: x[None], inputs), None)
    currents = _segment.feed(_ports.split(cell, params, inputs))
    return jax.tree.leaves(_segment.advance(cell, params, start.state, start.output, currents, reset)[2])


@step_p.def_abstract_eval
def _step_types(*operands, **params):
    return jax.make_jaxpr(partial(_unroll.for_ensemble, _first, params))(operands).out_avals


def _no_entry(*_):
    raise AssertionError("step is an operation of the body of a scan, not of a program")


_program.operation(
    step_p,
    Operation(lambda params: (), lambda params: 1, _no_entry, _no_entry),
    partial(_unroll.batch_of_layer, step_p, 0),
)


# --- scan -----------------------------------------------------------------------------------------

scan_p = jec.Primitive("hyprjax.scan")
scan_p.multiple_results = True


def scan(f: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], init: PyTree, xs: PyTree) -> tuple[PyTree, PyTree]:
    """`jax.lax.scan` along time, for use in a model: it continues from segment to segment, and may `step` layers.

    With it a network of any wiring is its step function: feedback from a higher to a lower population, populations that
    excite and inhibit each other, gates, short-term plasticity, moving averages. Plainly, and under `jax.grad`, it is
    `jax.lax.scan`. In a transform each segment starts from the carry of the segment before. Credit through the carry of
    `f` is cut, that through neurons' own states is not; `recurrent_credit="segment"` keeps it inside the segment, and
    `hyprjax.bptt` keeps all.

    Args:
      f: `(carry, x) -> (carry, y)`. What it closes over, such as parameters, is the same at every step.
      init: the carry before the first step. Only `hyprjax.bptt` trains it; the other transforms refuse one that depends
        on parameters, but for `jax.lax.stop_gradient(init)`. On a mesh with `Explicit` axes it is yours to place, and
        the carry stays where `init` is.
      xs: arrays `[T, ...]`, time first.

    Returns:
      The last carry (in a transform: of the segment) and the `y` of all steps, stacked.

    Raises:
      ValueError: `xs` holds no arrays or arrays of different lengths, or the carry changes its shapes.
      TypeError: the carry changes its dtypes.

    Examples:
      A low-pass filter of what a layer sends:

      >>> import jax, jax.numpy as jnp, hyprjax as hj
      >>> cell = hj.lif()
      >>> params = hj.init_layer(jax.random.key(0), cell, n_in=3, n_out=5)
      >>> def model(params, xs):
      ...     def smooth(mean, z):
      ...         mean = 0.9 * mean + 0.1 * z
      ...         return mean, mean
      ...     return hj.scan(smooth, jnp.zeros((8, 5)), hj.unroll(cell, params, xs))[1]
      >>> xs = jnp.ones((100, 8, 3))
      >>> bool(jnp.allclose(hj.hypr(model, segment_length=10)(params, xs), model(params, xs)))
      True
    """
    init, xs = jax.tree.map(jnp.asarray, (init, xs))
    lengths = {f"xs{keystr(path)}": jnp.shape(leaf)[:1] for path, leaf in tree_leaves_with_path(xs)}
    if len(set(lengths.values())) != 1 or () in lengths.values() or (0,) in lengths.values():
        got = arguments.describe(xs)
        raise ValueError(f"scan: xs must be arrays [T, ...] with the same number of steps, got {got}")
    if _program.in_body.value:
        raise ValueError(
            "scan was called in the body of another hyprjax.scan; use jax.lax.scan for a loop within a step"
        )
    (carried, of_carry), (data, of_xs) = jax.tree.flatten(init), jax.tree.flatten(xs)
    of_y: list[Any] = []

    def flat(*operands):
        carry, y = f(of_carry.unflatten(operands[: len(carried)]), of_xs.unflatten(operands[len(carried) :]))
        ys, tree = jax.tree.flatten(y)
        of_y.append(tree)
        return [*_same_carry(init, carry), *ys]

    with _program.in_body(True):
        closed = jax.make_jaxpr(flat)(*carried, *[x[0] for x in data])
    _check_body(closed.jaxpr)
    operands = [*closed.consts, *carried, *data]
    params = {"body": _of_operands(closed.jaxpr), "consts": len(closed.consts), "carried": len(carried)}
    outputs = scan_p.bind(*operands, **params) if _program.tracing() else _plain(params, operands)
    return of_carry.unflatten(outputs[: len(carried)]), of_y[-1].unflatten(outputs[len(carried) :])


def _same_carry(init, carry):
    """The leaves of a carry that is like `init`."""
    if jax.tree.structure(init) != jax.tree.structure(carry):
        raise ValueError(
            f"scan: the carry that f returns has the structure {jax.tree.structure(carry)}, but init has "
            f"{jax.tree.structure(init)}"
        )
    leaves = []
    for (path, before), after in zip(tree_leaves_with_path(init), jax.tree.leaves(carry), strict=True):
        weak = isinstance(after, bool | int | float) or getattr(jax.typeof(after), "weak_type", False)
        after = jnp.asarray(after, before.dtype) if weak else jnp.asarray(after)
        if (after.shape, after.dtype) != (before.shape, before.dtype):
            kind = ValueError if after.shape != before.shape else TypeError
            raise kind(
                f"scan: f returns carry{keystr(path)} as {arguments.describe(after)}, but it must stay what it is in "
                f"init, {arguments.describe(before)}"
            )
        explicit = _sharding.over(before) is not None
        leaves.append(_sharding.place(after, before, *_sharding.spec(before)) if explicit else after)
    return leaves


def _of_operands(jaxpr: jec.Jaxpr) -> jec.Jaxpr:
    """With constants as operands."""
    return jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])


def _check_body(jaxpr: jec.Jaxpr) -> None:
    for eqn in jaxpr.eqns:
        inner = [*jec.jaxprs_in_params(eqn.params)] if eqn.primitive.name != step_p.name else []
        if eqn.primitive.name in ("jit", "checkpoint", "remat2"):
            for one in inner:
                _check_body(one)
        elif any(map(_steps, inner)):
            raise ValueError(
                f"step was called under {eqn.primitive.name} ({source_info_util.summarize(eqn.source_info)}) in the "
                "body of hyprjax.scan, which cannot give it a state there; call it outside of that operation"
            )


def _steps(jaxpr: jec.Jaxpr) -> int:
    """How many steps of layers are in a body."""
    inside = lambda eqn: sum(map(_steps, jec.jaxprs_in_params(eqn.params)))  # noqa: E731
    return sum(1 if eqn.primitive.name == step_p.name else inside(eqn) for eqn in jaxpr.eqns)


class Body(NamedTuple):
    """The parts of a scan: its jaxpr, and its operands as constants, carry and data."""

    jaxpr: jec.Jaxpr
    consts: list[Array]
    carry: list[Array]
    xs: list[Array]

    def __call__(self, how: Evaluation, carry: Sequence[Any], xs: Sequence[Any], entering: Sequence[Any]):
        """`(next carry, y, what leaves the layers)`."""
        outs, leaving = interpret(self.jaxpr, [*self.consts, *carry, *xs], how, entering)
        return outs[: len(carry)], outs[len(carry) :], leaving


def _body(params: Any, operands: Sequence[Array]) -> Body:
    consts, carried = params["consts"], params["consts"] + params["carried"]
    parts = list(operands[:consts]), list(operands[consts:carried]), list(operands[carried:])
    return Body(params["body"], *parts)


class OverTime(NamedTuple):
    """An array of the values at all steps, in the evaluation of a body for all steps at once."""

    array: Array


class Recorded(NamedTuple):
    """What the S-stage leaves of a layer: outputs (flat), `Past`, and for credit along the scan inputs and resets."""

    outputs: list[Array]
    past: Past
    signals: list[Array] | None


def _s_stage(body: Body, start: Sequence[Array], layers: Sequence[Carry], keep: str) -> Any:
    """All steps, from the carry and the states and last outputs of the layers.

    Returns:
      The last carry, the layers' (without traces), all y, and, if to `keep` is the `"past"` (and `"signals"`), each
      carry that entered a step and the `Recorded` of each layer.
    """

    def one(cell, params, inputs, reset, layer):
        currents = _segment.feed(_ports.split(cell, params, inputs))
        state, output, up, past = _segment.advance(cell, params, layer.state, layer.output, currents, reset)
        return jax.tree.leaves(up), Carry(state, output, None), past

    def operation(eqn, operands, entering):
        outputs, layer, past = _unroll.for_ensemble(one, eqn.params, operands, *entering)
        signals = [operands[i] for i in _unroll.layer_signals(eqn.params)] if keep == "signals" else None
        recorded = Recorded(outputs, past, signals)
        return outputs, [(layer, recorded if keep != "nothing" else None)]

    def step(state, x):
        carry, layers = state
        after, y, leaving = body(Evaluation(operation, bind), carry, x, layers)
        layers, recorded = [[part[i] for part in leaving] for i in (0, 1)]
        return (after, layers), (y, None if keep == "nothing" else (carry, recorded))

    layers = [layer._replace(traces=None) for layer in layers]
    state, (ys, kept) = jax.lax.scan(step, (list(start), layers), body.xs, unroll=_recursion.at_once())
    carry, layers = state
    return carry, layers, ys, kept


def _plain(params, operands):
    body = _body(params, operands)
    carry, _, ys, _ = _s_stage(body, body.carry, _layers_at_rest(body, None), "nothing")
    return [*carry, *ys]


@scan_p.def_abstract_eval
def _scan_types(*operands, **params):
    return jax.make_jaxpr(partial(_plain, params))(operands).out_avals


# --- what is known before the first step ----------------------------------------------------------


class _Later(NamedTuple):
    """What depends on the step; of it only the type is known."""

    type: Any


def _for_known(visit: Callable[[Any, list[Any]], Any], body: Body) -> list[Any]:
    """`visit(parameters of the equation, operands)` of every layer; of operands that depend on the step, the types."""

    def operation(eqn, operands, entering):
        of_params = operands[: -len(_unroll.layer_signals(eqn.params))]
        if any(isinstance(x, _Later) for x in of_params):
            raise ValueError(
                "step: the parameters of a layer in the body of hyprjax.scan depend on its carry or on xs "
                f"({source_info_util.summarize(eqn.source_info)}), but they must be the same at every step; apply what "
                "changes from step to step to the inputs of the layer"
            )
        types = [x.type if isinstance(x, _Later) else x for x in operands]
        return [_Later(v.aval) for v in eqn.outvars], [visit(eqn.params, types)]

    def known(eqn, operands):
        if any(isinstance(x, _Later) for x in operands):
            return [_Later(v.aval) for v in eqn.outvars]
        return bind(eqn, operands)

    later = [_Later(v.aval) for v in body.jaxpr.invars[len(body.consts) :]]
    carry, xs = later[: len(body.carry)], later[len(body.carry) :]
    return body(Evaluation(operation, known, remat=False), carry, xs, [None] * _steps(body.jaxpr))[2]


def _layers_at_rest(body: Body, options: Any) -> list[Carry]:
    def rest(cell, params, inputs, reset):
        return _segment.rest(cell, params, jax.tree.map(lambda x: x[None], inputs), options)

    return _for_known(lambda params, operands: _unroll.for_ensemble(rest, params, _zeros(operands)), body)


def _zeros(operands: Sequence[Any]) -> list[Array]:
    """Zeros in the place of types."""
    return [_sharding.zeros(x) if isinstance(x, AbstractValue) else x for x in operands]


def _scan_rest(params, operands, options):
    body = _body(params, operands)
    types = jax.eval_shape(partial(_plain, params), operands)
    outputs = [*body.carry, *[jnp.zeros(x.shape, x.dtype) for x in types[len(body.carry) :]]]
    return outputs, [Carry(body.carry, None, None), *_layers_at_rest(body, options)]


# --- one segment ----------------------------------------------------------------------------------


def _scan_run(params, operands, entries, options):
    body, (own, *layers) = _body(params, operands), entries
    if options is None or options.exact:
        carry, layers, ys, _ = _s_stage(body, own.state, layers, "nothing")
        return [*carry, *ys], [Carry(carry, None, None), *layers], []
    run = _in_parallel if options.recurrent_credit == "none" else _along_the_scan
    carry, ys, layers, tokens = run(body, own.state, layers, options)
    return [*carry, *ys], [Carry(carry, None, None), *layers], tokens


def _in_parallel(body, start, layers, options):
    """Credit through the carry is cut: the body of all steps at once, each layer on what it recorded."""
    steps, fixed = len(body.xs[0]), stop_gradient(body._replace(jaxpr=None, carry=start))
    states = stop_gradient([layer._replace(traces=None) for layer in layers])
    _, after, _, (carries, recorded) = _s_stage(fixed._replace(jaxpr=body.jaxpr), fixed.carry, states, "past")

    def over_time(eqn, operands):
        if not any(isinstance(x, OverTime) for x in operands):
            return bind(eqn, operands)
        axes = [0 if isinstance(x, OverTime) else None for x in operands]
        outs = jax.vmap(lambda *operands: bind(eqn, [*operands]), axes)(*map(_array, operands))
        return [OverTime(x) for x in outs]

    def operation(eqn, operands, entering):
        of_params = len(operands) - len(_unroll.layer_signals(eqn.params))
        signals = [_all_steps(x, steps) for x in operands[of_params:]]
        layer, after, recorded = entering[0]
        outputs, left = _replay(eqn.params, [*operands[:of_params], *signals], layer, after, recorded, options)
        return [OverTime(x) for x in outputs], [left]

    at_steps = [OverTime(x) for x in carries], [OverTime(x) for x in body.xs]
    entering = list(zip(layers, after, recorded, strict=True))
    carries, ys, leaving = body(Evaluation(operation, over_time), *at_steps, entering)
    carry = [_all_steps(x, steps)[-1] for x in carries]  # equal to that of the S-stage, with credit for its own step
    return carry, [_all_steps(y, steps) for y in ys], [one for one, _ in leaving], [token for _, token in leaving]


def _along_the_scan(body, start, layers, options):
    """The scan is differentiated as it is; the traces give what the state at its start owes to the parameters."""

    def attach(cell, params, inputs, reset, layer):
        return layer._replace(state=_segment.attach(cell, options, params, layer.state, layer.traces))

    def entering(params, operands):
        return params, _zeros(operands), operands[: -len(_unroll.layer_signals(params))]

    known = _for_known(entering, body)
    attached = [
        _unroll.for_ensemble(attach, params, operands, layer)
        for (params, operands, _), layer in zip(known, layers, strict=True)
    ]
    carry, after, ys, (_, recorded) = _s_stage(body, start, attached, "signals")
    traces_alone = options._replace(recurrent_credit="none")
    leaving = [
        _replay(params, stop_gradient([*weights, *of.signals]), layer, after, stop_gradient(of), traces_alone)[1]
        for (params, _, weights), layer, after, of in zip(known, layers, after, recorded, strict=True)
    ]
    return carry, ys, after, [token for _, token in leaving]


def _replay(params, operands, layer, after, recorded, options):
    """The P-stage of one layer of a body: its outputs, and the carry after it with a token.

    Time is the leading axis of what is recorded and of the operands that are signals; the axes of an ensemble follow.
    """

    def one(cell, layer_params, inputs, reset, layer, after, outputs, past):
        outputs = _segment.structure(cell, layer_params, inputs).unflatten(outputs)
        replayed: Any = _segment.replay(cell, options, layer_params, inputs, layer, reset, outputs, after, past)
        outputs, after, token = replayed
        return jax.tree.leaves(outputs), (after, token)

    levels, signals = params["ensemble"], _unroll.layer_signals(params)
    behind = lambda x, axes: jnp.moveaxis(x, 0, axes)  # noqa: E731
    operands = [behind(x, sum(level[i] for level in levels)) if i in signals else x for i, x in enumerate(operands)]
    outputs, past = jax.tree.map(lambda x: behind(x, len(levels)), (recorded.outputs, recorded.past))
    outputs, left = _unroll.for_ensemble(one, params, operands, layer, after, outputs, past)
    return [jnp.moveaxis(x, len(levels), 0) for x in outputs], left


def _array(x: Any) -> Array:
    return x.array if isinstance(x, OverTime) else x


def _all_steps(x: Any, steps: int) -> Array:
    return x.array if isinstance(x, OverTime) else _unroll.in_batch(x, None, 0, steps)


# --- vmap -----------------------------------------------------------------------------------------


def _batch_of_scan(operands, dims, *, body, consts, carried):
    """The body becomes that of a batch, in which a layer has one more batch axis."""
    (size,) = {x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None}
    first_x = consts + carried
    move = lambda i: int(i >= first_x)  # noqa: E731 (time stays in front)
    moved = [
        x if d is None else jnp.moveaxis(x, d, move(i)) for i, (x, d) in enumerate(zip(operands, dims, strict=True))
    ]
    of_carry = [
        _unroll.in_batch(x, None if d is None else 0, 0, size)
        for x, d in zip(moved[consts:first_x], dims[consts:first_x], strict=True)
    ]
    moved[consts:first_x] = of_carry
    axes = [0 if d is not None or consts <= i < first_x else None for i, d in enumerate(dims)]
    at_step = [x[0] if i >= first_x else x for i, x in enumerate(moved)]
    one = partial(eval_jaxpr, body, [])
    with _program.in_body(True):
        closed = jax.make_jaxpr(jax.vmap(one, axes, axis_size=size))(*at_step)
    operands = [*closed.consts, *moved]
    outputs = scan_p.bind(
        *operands, body=_of_operands(closed.jaxpr), consts=len(closed.consts) + consts, carried=carried
    )
    return outputs, [0] * carried + [1] * (len(outputs) - carried)


_program.operation(
    scan_p,
    Operation(
        lambda params: range(params["consts"] + params["carried"], len(params["body"].invars)),
        lambda params: 1 + _steps(params["body"]),
        _scan_rest,
        _scan_run,
    ),
    _batch_of_scan,
)
