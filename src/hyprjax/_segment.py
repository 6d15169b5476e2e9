"""One segment of one layer: the S-stage forward, the P-stage backward.

This is the whole algorithm. `λ` steps, presynaptic activity `p_t = [x_t, z_{t-1}, 1]` of `P` values,
`n` neurons with `k` state variables each, weights `W = [W_in; W_rec; b]` of shape `[P, n]`:

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

The segment is one `jax.custom_vjp`. The traces take no part in its forward pass. Its backward pass
reads the incoming traces and returns the *outgoing traces in the place of their cotangent*: so both
recursions share one pass over the segment, and the traces of a loss that is never differentiated
are never computed. `_hypr` picks them up where `jax.vjp` puts them.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hyprjax import _recursion
from hyprjax._cell import Cell, Params, State


class Traces(NamedTuple):
    """Eligibility traces of one layer, one entry for each of the `k` state variables.

    Attributes:
      synapses: `∂s/∂W` as `k` arrays `[*batch, P, n]`, the rows of `P` in the order inputs, recurrent,
        bias; None where there has been no input yet, that is, all zeros.
      neuron: `∂s/∂φ` as `k` lists of `p` arrays `[*batch, n]`.
    """

    synapses: list[Float[Array, "*batch P n"]] | None
    neuron: list[list[Float[Array, "*batch n"]]]


class Options(NamedTuple):
    """Static choices of a segment: how to recur, which credit to keep, whether a later segment follows."""

    scan: str = "auto"
    recurrent_credit: str = "none"
    propagate: bool = True


class Past(NamedTuple):
    """What a step leaves behind for the P-stage: the state before it and its synaptic current."""

    state: State
    current: Float[Array, "t *batch n"]


def rest_traces(cell: Cell, params: Params, batch_shape: tuple[int, ...], dtype: Any, n_in: int) -> Traces:
    """The traces before any input: zero for synapses; for φ, whatever the rest state owes to it."""
    neuron = params["neuron"]
    leaves, tree = jax.tree.flatten(neuron)

    def rest(*leaves):
        return jax.tree.leaves(cell.rest(jax.tree.unflatten(tree, leaves), batch_shape, dtype))

    def derivative(index):
        tangents = [jnp.ones_like(leaf) if i == index else jnp.zeros_like(leaf) for i, leaf in enumerate(leaves)]
        return jax.jvp(rest, leaves, tangents)[1]

    columns = [derivative(index) for index in range(len(leaves))]
    state = rest(*leaves)
    n = params["w_in"].shape[-1]
    rows = n_in + ("w_rec" in params) * n + ("bias" in params)
    return Traces(
        synapses=[jnp.zeros((*batch_shape, rows, n), dtype) for _ in state],
        neuron=[[column[c] for column in columns] for c in range(len(state))],
    )


def step_with_reset(cell: Cell, neuron: Any, state: State, current: Array, reset: Array | None) -> tuple[State, Array]:
    """`cell.step`, from rest instead of from `state` where `reset` is True."""
    if reset is not None:
        rest = cell.rest(neuron, reset.shape, current.dtype)
        state = jax.tree.map(lambda r, s: jnp.where(reset[..., None], r, s), rest, state)
    return cell.step(neuron, state, current)


def run(
    cell: Cell,
    params: Params,
    inputs: Float[Array, "t *batch m"],
    state: State,
    output: Float[Array, "*batch n"],
    reset: Bool[Array, "t *batch"] | None,
    *,
    keep_past: bool = False,
) -> tuple[Float[Array, "t *batch n"], State, Float[Array, "*batch n"], Past | None]:
    """The S-stage: steps the layer through `inputs`.

    Returns:
      All outputs, the last state, the last output, and, with `keep_past`, the `Past` of every step.
    """
    feedforward = inputs @ params["w_in"]
    if "bias" in params:
        feedforward = feedforward + params["bias"]

    def step(carry, at_t):
        state, output = carry
        current, reset = at_t
        if "w_rec" in params:
            last = output if reset is None else jnp.where(reset[..., None], 0, output)
            current = current + last @ params["w_rec"]
        next_state, output = step_with_reset(cell, params["neuron"], state, current, reset)
        return (next_state, output), (output, Past(state, current) if keep_past else None)

    (state, output), (outputs, past) = jax.lax.scan(step, (state, output), (feedforward, reset))
    return outputs, state, output, past


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def segment(
    cell: Cell,
    options: Options,
    params: Params,
    inputs: Float[Array, "t *batch m"],
    state: State,
    output: Float[Array, "*batch n"],
    traces: Traces,
    reset: Bool[Array, "t *batch"] | None,
) -> tuple[Float[Array, "t *batch n"], State, Float[Array, "*batch n"], Float[Array, ""]]:
    """One layer over one segment; differentiating it is HYPR.

    Args:
      cell: the neuron model.
      options: static choices.
      params: the layer's parameters, all of one dtype.
      inputs: inputs of the segment.
      state: state before the segment.
      output: last output before the segment.
      traces: eligibility traces before the segment; their "cotangent" is the traces after it.
      reset: True where state, last output and traces return to rest before the step.

    Returns:
      Outputs, last state, last output, and a zero whose only use is to be pulled back: it keeps the
      P-stage running in a layer whose outputs do not reach the loss.
    """
    outputs, state, output, _ = run(cell, params, inputs, state, output, reset)
    return outputs, state, output, jnp.zeros((), outputs.dtype)


def _s_stage(cell, options, params, inputs, state, output, traces, reset):
    outputs, last_state, last_output, past = run(cell, params, inputs, state, output, reset, keep_past=True)
    residuals = params, inputs, past, output, outputs, traces, reset
    return (outputs, last_state, last_output, jnp.zeros((), outputs.dtype)), residuals


def _presynaptic(params, inputs, output, outputs, reset):
    """`p_t = [x_t, z_{t-1}, 1]`, as far as the layer has recurrent weights and a bias."""
    parts = [inputs]
    if "w_rec" in params:
        last = jnp.concatenate([output[None], outputs[:-1]])
        parts.append(last if reset is None else jnp.where(reset[..., None], 0, last))
    if "bias" in params:
        parts.append(jnp.ones((*inputs.shape[:-1], 1), inputs.dtype))
    return jnp.concatenate(parts, axis=-1)


def _split(dW, params):
    """The rows of `dW` as the gradients of `w_in`, `w_rec` and `bias`."""
    m, n = params["w_in"].shape
    grads = {"w_in": dW[:m]}
    if "w_rec" in params:
        grads["w_rec"] = dW[m : m + n]
    if "bias" in params:
        grads["bias"] = dW[-1]
    return grads


def _contract(q, synapses):
    """`Σ_batch q_0·ε_0`, `[P, n]`, in one pass over the traces."""
    batch_shape, (rows, n) = q[0].shape[:-1], synapses[0].shape[-2:]
    size = math.prod(batch_shape)
    q = [q_c.reshape(size, 1, n) for q_c in q]
    synapses = [trace.reshape(size, rows, n) for trace in synapses]
    if jax.default_backend() != "cpu":
        return sum((q_c * trace).sum(0) for q_c, trace in zip(q, synapses, strict=True))

    def add(total, at_b):  # A reduction over the leading axis strides through memory on a CPU: 15 times slower.
        return total + sum(q_c * trace for q_c, trace in zip(*at_b, strict=True)), None

    return jax.lax.scan(add, jnp.zeros((rows, n), synapses[0].dtype), (q, synapses))[0]


def _through(row, traces, added):
    """A row of state applied to the traces of φ, plus what the segment itself adds."""
    return [of + sum(r * trace[i] for r, trace in zip(row, traces, strict=True)) for i, of in enumerate(added)]


def _next_traces(p, propagation, traces):
    """`ε_λ = R_0 ε_0 + Σ_t p_t ⊗ (R_t B_t)`, batch first so that each is one batched GEMM."""
    p = jnp.moveaxis(p, 0, -2)
    synapses = []
    for row in propagation:
        trace = jnp.einsum("...tp,...tn->...pn", p, jnp.moveaxis(row.current, 0, -2))
        if traces.synapses is not None:
            trace += sum(R[..., None, :] * old for R, old in zip(row.state, traces.synapses, strict=True))
        synapses.append(trace)
    return Traces(synapses, [_through(row.state, traces.neuron, row.neuron) for row in propagation])


def _p_stage(cell, options, residuals, cotangents):
    params, inputs, past, output, outputs, traces, reset = residuals
    zeta, *_ = cotangents
    neuron, w_rec = params["neuron"], params.get("w_rec")

    recur = _recursion.associative if _recursion.pick(options.scan) == "associative" else _recursion.sequential
    if options.recurrent_credit == "segment" and w_rec is not None:
        recur = partial(_recursion.sequential, w_rec=w_rec)
    step = partial(step_with_reset, cell)
    signal, propagation = recur(step, neuron, past.state, past.current, reset, zeta, propagate=options.propagate)

    p = _presynaptic(params, inputs, output, outputs, reset)
    time_and_batch = tuple(range(p.ndim - 1))
    dW = jnp.tensordot(p, signal.current, axes=(time_and_batch, time_and_batch))
    if traces.synapses is not None:
        dW += _contract(signal.state, traces.synapses)
    d_neuron = [of.sum(time_and_batch[:-1]) for of in _through(signal.state, traces.neuron, signal.neuron)]

    d_params = _split(dW, params) | {"neuron": jax.tree.unflatten(jax.tree.structure(neuron), d_neuron)}
    d_inputs = signal.current @ params["w_in"].T
    d_traces = _next_traces(p, propagation, traces) if options.propagate else None
    return d_params, d_inputs, None, None, d_traces, None


segment.defvjp(_s_stage, _p_stage)
