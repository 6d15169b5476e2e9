"""One segment of one layer: the S-stage forward, the P-stage backward.

This is the whole algorithm. `λ` steps, presynaptic activity `p_t = [x_t, z_{t-1}, 1]` of `P` values,
`n` neurons with `k` state variables each, weights `W = [W_in; W_rec; b]` of shape `[P, n]`; `P` is filled up with zeros
to a multiple of 8, which the GEMMs repay:

    S-stage    I_t = p_t W,   (s_t, z_t) = step(φ, s_{t-1}, I_t)                 `run`, one `lax.scan`

    P-stage    q_{t-1} = J_tᵀ q_t + G_t ζ_t,   δ_t = B_t·q_t + g_t ζ_t           `_recursion`
               R_{t-1} = R_t J_t                                                 `_recursion`
               dW  = Σ_t p_tᵀ δ_t + Σ_batch q_0·ε_0                              GEMM + a pass over ε_0
               dφ  = Σ_t (D_t·q_t + h_t ζ_t) + Σ_batch q_0·ε_0(φ)
               dx_t = δ_t W_inᵀ                                                  the ζ_t of the layer below
               ε_λ = R_0 ε_0 + Σ_t p_t ⊗ (R_t B_t)                               a pass over ε_0 + GEMM

with `ζ_t = dL/dz_t` from above, the eligibility traces `ε = ∂s/∂W` (along the neuron's own state
only: e-prop's approximation) and local derivatives J, B, D of the state and G, g, h of the output.
`R_t B_t` is row by row what `δ_t` is for `q`, so `_recursion` pulls `1 + k` rows back the same way.

The P-stage is the backward pass of a `jax.custom_vjp`, `replay`, whose forward pass hands on what the S-stage gave. It
reads the incoming traces and returns the *outgoing traces in the place of their cotangent*: so both
recursions share one pass over the segment, and the traces of a loss that is never differentiated
are never computed. `_hypr` picks them up where `jax.vjp` puts them.

A cell may have several currents, each with its own `p`, `W`, `B` and `δ` (`_ports`), and an output of several parts: ζ
is a pytree then, and what `W_rec` carries back is what the cell says (`Cell.feedback`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, PyTree

from hyprjax import _factored, _ports, _recursion, _sharding
from hyprjax._cell import Cell, Current, Output, Params, State, emit
from hyprjax._factored import Factors
from hyprjax._ports import Synapses
from hyprjax._recursion import dot

# At most so many steps are short: for at least so many batch elements the traces add up outer products instead of GEMMs
# on a CPU, and the GEMM of a weight is the faster one with a transpose.
SHORT, MANY = 16, 8


class Traces(NamedTuple):
    """Eligibility traces of one layer, one entry for each of the `k` state variables.

    Attributes:
      synapses: `∂s/∂W` as `k` arrays `[*batch, P, n]`, the rows of `P` in the order inputs, recurrent, bias, then
        zeros to a multiple of 8; kept in `Options.trace_dtype`. With `Options.trace_rank`, `k` `Factors`. Of a cell
        with ports a dict of such by port.
      neuron: `∂s/∂φ` as `k` lists of `p` arrays `[*batch, n]`.
    """

    synapses: list[Float[Array, "*batch P n"]] | list[Factors] | dict[str, Any]
    neuron: list[list[Float[Array, "*batch n"]]]


class Options(NamedTuple):
    """Static choices of a segment.

    Attributes:
      scan: `"auto"`, `"sequential"` or `"associative"`.
      chunk_length: steps per chunk of the associative back end; None for about the root of those of the segment.
      recurrent_credit: `"none"` or `"segment"`.
      trace_dtype: of the traces of the weights between segments; None for that of the inputs.
      trace_rank: of the traces of the weights, see `_factored`; None for full ones.
      first: whether no segment came before, so that the traces are at rest and need no pass over them.
      last: whether no segment follows, so that nobody reads the traces it would leave.
      exact: whether credit goes on into the segment before in the place of traces, see `_exact`.
    """

    scan: str = "auto"
    chunk_length: int | None = None
    recurrent_credit: str = "none"
    trace_dtype: Any = None
    trace_rank: int | None = None
    first: bool = False
    last: bool = False
    exact: bool = False


class Carry(NamedTuple):
    """What one segment of a layer, or of `scan` or `delay`, hands to the next.

    Attributes:
      state: the neurons' state, a pytree of `[*batch, n]` arrays; the carry of `scan`, the last inputs of `delay`.
      output: the last output `[*batch, n]`, as far as `w_rec` carries it back; None where there are no neurons.
      traces: the eligibility traces; None in a stream that does not learn, and where there are no neurons.
    """

    state: State
    output: Any
    traces: Traces | None


class Past(NamedTuple):
    """What a step leaves behind for the P-stage.

    Attributes:
      state: before the step.
      current: the synaptic currents.
      output: what `w_rec` carries back; None if that is what `unroll` returns.
    """

    state: State
    current: Current
    output: Float[Array, "t *batch n"] | None


def rest(cell: Cell, params: Params, inputs: PyTree[Float[Array, "t *batch _"]], options: Options | None) -> Carry:
    """The carry before any input; without traces if `options` is None."""
    w, x = _any(params["w_in"]), _any(inputs)
    batch_shape, dtype, n = x.shape[1:-1], x.dtype, w.shape[-1]
    place = _placement(w, x)
    rest_of = lambda neuron: jax.tree.map(place, cell.rest(neuron, batch_shape, dtype))  # noqa: E731
    state, output = rest_of(params["neuron"]), place(jnp.zeros((*batch_shape, n), dtype))
    if options is None or options.exact:
        return Carry(state, output, None)
    zeros = lambda *shape: jnp.zeros((*batch_shape, *shape), options.trace_dtype or dtype)  # noqa: E731

    def no_trace(rows):
        if options.trace_rank:
            rank = min(options.trace_rank, rows)
            return Factors(place(zeros(rank, rows), None), place(zeros(rank, n)))
        return place(zeros(rows, n))

    variables = jax.tree.leaves(state)
    by_port = [[no_trace(port.rows + _filling(port.rows)) for _ in variables] for port in _ports.split(cell, params, x)]
    # No input has arrived, but the rest state itself may owe something to φ.
    phi, tree = jax.tree.flatten(params["neuron"])
    one_of_phi = lambda i: tree.unflatten([jnp.full_like(p, i == j) for j, p in enumerate(phi)])  # noqa: E731
    columns = [jax.jvp(rest_of, (params["neuron"],), (one_of_phi(i),))[1] for i in range(len(phi))]
    of_phi = [[jax.tree.leaves(column)[c] for column in columns] for c in range(len(variables))]
    return Carry(state, output, Traces(_ports.join(cell, by_port), of_phi))


def _any(tree: PyTree) -> Array:
    """One of the arrays; what is asked of it is the same for all ports."""
    return jax.tree.leaves(tree)[0]


def _placement(w_in: Array, inputs: Array) -> Callable[..., Array]:
    """How to place an array `[*batch, ..., n]`: the batch as that of the inputs, the neurons as those of `w_in`."""
    (*_, neurons), (_, *batch, _) = _sharding.spec(w_in), _sharding.spec(inputs)
    like = max(inputs, w_in, key=_sharding.on_mesh)

    def place(x: Array, last: Any = neurons) -> Array:
        return _sharding.place(x, like, *batch, *[None] * (x.ndim - len(batch) - 1), last)

    return place


def _filling(rows: int) -> int:
    """How many zeros fill the rows of `P` up to a multiple of 8: a tenth faster GEMMs on a CPU."""
    return -rows % 8


def structure(cell: Cell, params: Params, inputs: PyTree) -> Any:
    """Of what `unroll` returns."""
    like, names = jax.ShapeDtypeStruct(_any(params["w_in"]).shape[-1:], _any(inputs).dtype), _ports.names(cell)
    return _structure(cell, jax.tree.structure(params["neuron"]), like, names)


@lru_cache(maxsize=256)
def _structure(cell: Cell, neuron: Any, like: Any, names: tuple[Any, ...]) -> Any:
    def outputs(neuron):
        current = _ports.join(cell, [jnp.zeros(like.shape, like.dtype)] * len(names))
        return emit(cell, cell.step(neuron, cell.rest(neuron, (), like.dtype), current)[1])[0]

    return jax.tree.structure(jax.eval_shape(outputs, neuron.unflatten([like] * neuron.num_leaves)))


def step_with_reset(
    cell: Cell, neuron: Any, state: State, current: Current, reset: Array | None
) -> tuple[State, tuple[Output, Output]]:
    """`cell.step`, from rest instead of from `state` where `reset` is True.

    Returns:
      The next state, what goes up, and what `w_rec` carries back.
    """
    if reset is not None:
        rest = cell.rest(neuron, reset.shape, _any(current).dtype)
        state = jax.tree.map(partial(_sharding.where, reset), rest, state)
    state, output = cell.step(neuron, state, current)
    return _sharding.vary((state, emit(cell, output)), current)


def feed(synapses: Sequence[Synapses]) -> list[Array]:
    """The currents that inputs and bias make up, for each port."""
    currents = [None if port.w_in is None else _sharding.gather(port.inputs) @ port.w_in for port in synapses]
    currents = [_sharding.zeros_like(_any(currents)) if current is None else current for current in currents]
    return [x if port.bias is None else x + port.bias for x, port in zip(currents, synapses, strict=True)]


def advance(
    cell: Cell,
    params: Params,
    state: State,
    output: Array,
    currents: Sequence[Array],
    reset: Array | None,
    multiply: Callable[[Array, Any], Array] = jnp.matmul,
    step: Callable[..., tuple[State, tuple[Output, Output]]] = step_with_reset,
) -> tuple[State, Array, Output, Past]:
    """One step from the last state and output, with these currents from inputs and bias.

    `multiply` is how the last output goes through `w_rec`, and `step` how state and output become the next ones.

    Returns:
      The next state and output, what goes up, and what the step leaves behind.
    """
    if recurrent := params.get("w_rec") is not None:
        last = _sharding.gather(output if reset is None else _sharding.where(reset, 0, output))
        weights = [_ports.onto(port, params["w_rec"]) for port in _ports.names(cell)]
        currents = [x if w is None else x + multiply(last, w) for x, w in zip(currents, weights, strict=True)]
    current = _ports.join(cell, currents)
    next_state, (up, back) = step(cell, params["neuron"], state, current, reset)
    apart = recurrent and (cell.feedback or cell.sends)
    return next_state, output if back is None else back, up, Past(state, current, back if apart else None)


@jax.named_scope("s_stage")
def run(
    cell: Cell,
    params: Params,
    inputs: PyTree[Float[Array, "t *batch _"]],
    state: State,
    output: Float[Array, "*batch n"],
    reset: Bool[Array, "t *batch"] | None,
    *,
    keep_past: bool = False,
) -> tuple[PyTree[Float[Array, "t *batch n"]], State, Float[Array, "*batch n"], Past | None]:
    """The S-stage: steps the layer through `inputs`.

    Returns:
      All outputs, the last state, the last output as far as `w_rec` carries it back, and, with `keep_past`, the `Past`
      of every step.
    """

    def step(carry, at_t):
        state, output, up, past = advance(cell, params, *carry, *at_t)
        return (state, output), (up, past if keep_past else None)

    currents = feed(_ports.split(cell, params, inputs))
    carry, at_t = (state, output), (currents, reset)
    (state, output), (outputs, past) = jax.lax.scan(step, carry, at_t, unroll=_recursion.at_once())
    return outputs, state, output, past


def segment(
    cell: Cell,
    options: Options,
    params: Params,
    inputs: PyTree[Float[Array, "t *batch _"]],
    carry: Carry,
    reset: Bool[Array, "t *batch"] | None,
) -> tuple[PyTree[Float[Array, "t *batch n"]], Carry, Float[Array, ""]]:
    """One layer over one segment; differentiating it is HYPR.

    Args:
      cell: the neuron model.
      options: static choices.
      params: the layer's parameters, all of the dtype of `inputs`.
      inputs: inputs of the segment.
      carry: what the segment before left; the "cotangent" of its traces is the traces after this one.
      reset: True where state, last output and traces return to rest before the step.

    Returns:
      The outputs, the carry without its traces, and a zero whose only use is to be pulled back: it
      keeps the P-stage running in a layer whose outputs do not reach the loss.
    """
    given = stop_gradient((params, inputs, carry.state, carry.output))
    outputs, state, output, past = run(cell, *given, reset, keep_past=True)
    return replay(cell, options, params, inputs, carry, reset, outputs, Carry(state, output, None), past)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def replay(cell, options, params, inputs, carry, reset, outputs, after, past):
    """What `segment` returns, from an S-stage that is done and not differentiated; to pull it back is the P-stage.

    `outputs`, `past` and the carry `after` them are those of the S-stage, the other arguments those of `segment`.
    """
    return outputs, after, _token(outputs)


def _token(outputs):
    """A zero that depends on the outputs, so that it has the axes of a `jax.vmap` which they have."""
    return 0 * _any(outputs).sum()


def _replay(cell, options, params, inputs, carry, reset, outputs, after, past):
    results = outputs, after, _token(outputs)
    return results, (params, inputs, carry.output, carry.traces, reset, outputs, past)


def _presynaptic(port: Synapses, last, one):
    """`p_t = [x_t, z_{t-1}, 1, 0, ...]`, as far as the port has inputs, recurrent weights and a bias."""
    parts = [] if port.w_in is None else [_sharding.gather(port.inputs)]
    if port.w_rec is not None:
        parts.append(last)
    if port.bias is not None:
        parts.append(one)
    filling = jnp.broadcast_to(0 * one, (*one.shape[:-1], _filling(port.rows)))
    return jnp.concatenate([*parts, filling], axis=-1)


def last_outputs(output: Array, outputs: Array, reset: Array | None) -> Array:
    """`z_{t-1}`."""
    last = jnp.concatenate([output[None], outputs[:-1]])
    return _sharding.gather(last if reset is None else _sharding.where(reset, 0, last))


@jax.named_scope("weights")
def of_synapses(
    cell: Cell, params: Params, inputs: PyTree, last: Array | None, deltas: Sequence[Array]
) -> tuple[Params, PyTree]:
    """The gradients of weights and inputs from `z_{t-1}` and the `δ_t` of each port: one GEMM for each weight."""

    def of_port(delta, port):
        time_and_batch = tuple(range(delta.ndim - 1))
        of_neurons = _sharding.over(delta, None, _sharding.spec(_any(params["w_in"]))[-1])

        def gemm(p):
            if _sharding.on_mesh(p) or len(p) <= SHORT:
                return jnp.tensordot(p, delta, (time_and_batch, time_and_batch), out_sharding=of_neurons)
            rows, columns = (x.reshape(-1, x.shape[-1]) for x in (p, delta))  # or XLA transposes `p` first
            return jax.lax.dot_general(rows, columns, (((0,), (0,)), ((), ())))

        of_inputs = of_w_in = None
        if port.w_in is not None:
            like = _sharding.over(delta, *_sharding.spec(port.inputs))
            of_inputs = jnp.matmul(delta, port.w_in.T, out_sharding=like)
            of_w_in = gemm(_sharding.gather(port.inputs))
        of_w_rec = None if port.w_rec is None else gemm(last)
        return Synapses(of_inputs, of_w_in, of_w_rec, None if port.bias is None else delta.sum(time_and_batch))

    by_port = list(map(of_port, deltas, _ports.split(cell, params, inputs)))
    return _ports.of_params(cell, params, by_port), _ports.of_inputs(cell, inputs, by_port)


def _split(dW, port: Synapses):
    """The gradients of a port's weights from the rows of `dW`."""
    weights = [w for w in port[1:] if w is not None]
    sizes = [w.size // dW.shape[1] for w in weights]
    parts = iter(jax.lax.split(dW, [*sizes, len(dW) - sum(sizes)]))
    of_weights = [None if w is None else next(parts).reshape(w.shape) for w in port[1:]]
    return Synapses(None, *of_weights)


def _contract(q, synapses):
    """`Σ_batch q_0·ε_0`, `[P, n]`, in one pass over the traces."""
    if isinstance(synapses[0], Factors):
        return _factored.contract(q, synapses)
    batch_shape, (rows, n) = q[0].shape[:-1], synapses[0].shape[-2:]
    if jax.default_backend() != "cpu" or _sharding.on_mesh(synapses[0]):
        return dot([q_c[..., None, :] for q_c in q], synapses).sum(tuple(range(len(batch_shape))))
    size = math.prod(batch_shape)
    q = [q_c.reshape(size, 1, n) for q_c in q]
    synapses = [trace.reshape(size, rows, n) for trace in synapses]

    def add(total, at_b):  # A reduction over the leading axis strides through memory on a CPU: 15 times slower.
        return total + dot(*at_b), None

    nothing = _sharding.vary(jnp.zeros((rows, n), jnp.result_type(q[0], synapses[0])), q, synapses)
    return jax.lax.scan(add, nothing, (q, synapses))[0]


def _through(row, traces, added):
    """A row of state applied to the traces of φ, plus what the segment itself adds."""
    return [of + dot(row, [trace[i] for trace in traces]) for i, of in enumerate(added)]


def _forget(traces, cleared):
    """The traces, or what goes into them, zero where a reset clears them: what became inf or NaN ends there too."""
    if cleared is None:
        return traces
    return jax.tree.map(lambda trace: _sharding.where(cleared, 0, trace), traces)


@jax.named_scope("contraction")
def _owed(cell, options, params, q, traces):
    """`Σ_batch q_0·ε_0`, what the state at the start of a segment owes to the parameters."""
    batch, tree = tuple(range(q[0].ndim - 1)), jax.tree.structure(params["neuron"])
    of_phi = [dot(q, [trace[i] for trace in traces.neuron]).sum(batch) for i in range(tree.num_leaves)]
    owed = {"neuron": tree.unflatten(of_phi)}
    if options.first:
        return owed
    ports = zip(_ports.split(cell, params, None), _ports.apart(cell, traces.synapses), strict=True)
    return owed | _ports.of_params(cell, params, [_split(_contract(q, synapses), port) for port, synapses in ports])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attach(cell, options, params, state, traces):
    """The state that a segment starts from, whose derivative is what it owes to the parameters."""
    return state


def _attach(cell, options, params, state, traces):
    return state, (params, traces)


def _pull_attached(cell, options, residuals, q):
    params, traces = residuals
    q = jax.tree.leaves(q)
    cleared = reduce(operator.and_, [(of_variable == 0).all(-1) for of_variable in q])  # by a reset
    d_params = jax.tree.map(_sharding.zeros_like, params)
    for part, of_part in _owed(cell, options, params, q, _forget(traces, cleared)).items():
        d_params[part] = jax.tree.map(lambda d, owed: owed.astype(d.dtype), d_params[part], of_part)
    return d_params, None, None


attach.defvjp(_attach, _pull_attached)


@jax.named_scope("traces")
def _next_synapses(p, R, currents, synapses, first):
    """`ε_λ = R_0 ε_0 + Σ_t p_t ⊗ (R_t B_t)` of one port, from the rows of `R_0` and of `R B`.

    The rows of `R B` stand side by side, for one GEMM per batch element; not on a mesh, where neurons may be sharded.
    On a CPU a few steps of many batch elements are added up in the one pass over the traces instead.
    """
    if isinstance(synapses[0], Factors):
        return _next_factors(p, R, currents, synapses)
    outer = lambda RB: jnp.einsum("...tp,...tn->...pn", jnp.moveaxis(p, 0, -2), jnp.moveaxis(RB, 0, -2))  # noqa: E731
    if _sharding.on_mesh(p):
        added = map(outer, currents)
    elif len(p) <= SHORT and math.prod(p.shape[1:-1]) >= MANY and jax.default_backend() == "cpu":
        added = [dot(list(p[..., None]), list(RB[..., None, :])) for RB in currents]
    else:
        added = jnp.split(outer(jnp.concatenate(currents, axis=-1)), len(currents), axis=-1)
    traces = []
    for row, trace in zip(R, added, strict=True):
        if not first:
            trace += dot([of_variable[..., None, :] for of_variable in row], synapses)
        traces.append(trace.astype(synapses[0].dtype))
    return traces


def _next_factors(p, R, currents, factors):
    """The same with traces of low rank: the incoming ones are more rows beside those of the segment."""
    rank, dtype = factors[0].pre.shape[-2], factors[0].pre.dtype
    A = jnp.concatenate([jnp.moveaxis(p, 0, -2), *[f.pre.astype(p.dtype) for f in factors]], axis=-2)
    kept = []
    for row, current in zip(R, currents, strict=True):
        through = [of_variable[..., None, :] * f.post for of_variable, f in zip(row, factors, strict=True)]
        C = jnp.concatenate([jnp.moveaxis(current, 0, -2), *through], axis=-2)
        kept.append(jax.tree.map(lambda x: x.astype(dtype), _factored.compress(A, C, rank)))
    return kept


@jax.named_scope("p_stage")
def _p_stage(cell, options, residuals, cotangents):
    params, inputs, output, traces, reset, outputs, past = residuals
    zeta, *_ = cotangents
    neuron, ports = params["neuron"], _ports.split(cell, params, inputs)
    recurrent = params.get("w_rec") is not None
    explicit = options.recurrent_credit == "segment" and recurrent
    steps = _any(past.current)
    size = math.prod(steps.shape[1:])

    def step(*args):
        state, (up, back) = step_with_reset(cell, *args)
        return state, (up, back) if explicit else up

    signal, propagation = _recursion.pull_back(
        step,
        neuron,
        past.state,
        past.current,
        reset,
        zeta,
        propagate=not options.last,
        chunks=1 if explicit else _recursion.chunks(options.scan, options.chunk_length, len(steps), size),
        w_rec=[port.w_rec for port in ports] if explicit else None,
    )

    last = last_outputs(output, outputs if past.output is None else past.output, reset) if recurrent else None
    d_neuron = [of.sum(tuple(range(of.ndim - 1))) for of in signal.neuron]
    d_params, d_inputs = of_synapses(cell, params, inputs, last, signal.current)
    d_params |= {"neuron": jax.tree.unflatten(jax.tree.structure(neuron), d_neuron)}
    at_start = _forget(traces, None if reset is None else reset[0])
    for part, of_part in _owed(cell, options, params, signal.state, at_start).items():
        d_params[part] = jax.tree.map(lambda d, owed: (d + owed).astype(d.dtype), d_params[part], of_part)
    next_traces = None
    if not options.last:
        kept = _forget(traces, None if reset is None else reset.any(0))
        forgotten = None if reset is None else _recursion.before_a_reset(reset)
        R, one = [row.state for row in propagation], _sharding.zeros_like(_sharding.gather(steps)[..., :1]) + 1
        synapses = [
            _next_synapses(
                _forget(_presynaptic(port, last, one), forgotten),
                R,
                [row.current[i] for row in propagation],
                of,
                options.first,
            )
            for i, (port, of) in enumerate(zip(ports, _ports.apart(cell, kept.synapses), strict=True))
        ]
        of_neuron = [_through(row.state, kept.neuron, row.neuron) for row in propagation]
        next_traces = Traces(_ports.join(cell, synapses), of_neuron)
    no_cotangent: Any = None  # rather than arrays of zeros
    return d_params, d_inputs, Carry(no_cotangent, no_cotangent, next_traces), None, None, None, None


replay.defvjp(_replay, _p_stage)
