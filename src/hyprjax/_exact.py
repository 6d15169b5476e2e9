"""One segment of one layer, pulled back exactly, for `bptt`.

This is backpropagation as JAX has it, but for the weights: in a scan that JAX differentiates they are constants, and an
outer product is added to their gradients at each step. Here the scan is pulled back to the currents,

    δ_t = dL/dI_t                       JAX's transpose of the scan, with ζ_{t-1} += δ_t W_recᵀ in it
    dW  = Σ_t p_t ⊗ δ_t                 one GEMM for the segment
    dφ  = Σ_batch Σ_t dL/dφ_t           each batch element has its own sum over time

and the cotangents of state and output before the segment go to the segment before.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, PyTree

from hyprjax import _ports, _recursion, _segment, _sharding
from hyprjax._cell import Cell, Params
from hyprjax._segment import Carry


def segment(
    cell: Cell,
    params: Params,
    inputs: PyTree[Float[Array, "t *batch _"]],
    carry: Carry,
    reset: Bool[Array, "t *batch"] | None,
) -> tuple[PyTree[Float[Array, "t *batch n"]], Carry]:
    """Outputs and next carry of one layer over one segment, with their exact derivative; arguments as of `_segment`."""
    return _segment_of(cell, params, inputs, carry, reset)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _segment_of(cell, params, inputs, carry, reset):
    outputs, state, output, _ = _segment.run(cell, params, inputs, carry.state, carry.output, reset)
    return outputs, Carry(state, output, None)


def _forward(cell, params, inputs, carry, reset):
    currents = _segment.feed([port._replace(bias=None) for port in _ports.split(cell, params, inputs)])
    of_element = lambda p: _sharding.zeros_like(currents[0][0], p.dtype) + p  # noqa: E731
    neuron = jax.tree.map(of_element, params["neuron"])
    run = partial(_run, cell, params, reset)
    (outputs, after), pull, back = jax.vjp(run, neuron, currents, carry, has_aux=True)
    return (outputs, after), (params, inputs, carry.output, reset, outputs if back is None else back, pull)


@jax.named_scope("s_stage")
def _run(cell, params, reset, neuron, currents, carry):
    """The S-stage from the currents of inputs and bias; its derivative is with respect to the last three."""
    layer, biases = {**params, "neuron": neuron}, [port.bias for port in _ports.split(cell, params, None)]
    if layer.get("w_rec") is not None:
        transposed = lambda w: jax.lax.optimization_barrier(w.T)  # noqa: E731  # once, not in every step
        layer["w_rec"] = jax.tree.map(lambda w: (w, transposed(w)), layer["w_rec"])

    def step(carry, at_t):
        (state, output), (currents, reset) = carry, at_t
        currents = [x if bias is None else x + bias for x, bias in zip(currents, biases, strict=True)]
        state, output, up, past = _segment.advance(
            cell, layer, state, output, currents, reset, multiply=_recurrent, step=_step_of_each
        )
        return (state, output), (up, past.output)

    body: Any = step
    if jax.default_backend() != "cpu":  # The derivatives are cheap there, and to keep them is not.
        keep = jax.checkpoint_policies.save_only_these_names("recurrent")
        body = jax.checkpoint(step, prevent_cse=False, policy=keep)
    start, unroll = (carry.state, carry.output), _recursion.at_once()
    (state, output), (outputs, back) = jax.lax.scan(body, start, (currents, reset), unroll=unroll)
    return (outputs, Carry(state, output, None)), back


def _step_of_each(cell, neuron, state, current, reset):
    """`step_with_reset` of each batch element with its own neurons, which a cell's functions know as `[n]`."""
    step = partial(_segment.step_with_reset, cell)
    for _ in range(jax.tree.leaves(current)[0].ndim - 1):
        step = jax.vmap(step)
    return step(neuron, state, current, reset)


def _recurrent(last, weights):
    return checkpoint_name(_through(last, weights), "recurrent")


@jax.custom_vjp
def _through(last: Array, weights: tuple[Array, Array]) -> Array:
    """`last @ w` from `(w, w.T)`, which are constants."""
    return last @ weights[0]


def _pull_through(back, cotangent):
    *batch, _ = _sharding.spec(cotangent)
    return jnp.matmul(cotangent, back, out_sharding=_sharding.over(cotangent, *batch, None)), None


_through.defvjp(lambda last, weights: (_through(last, weights), weights[1]), _pull_through)


@jax.named_scope("p_stage")
def _pull(cell, residuals, cotangents):
    params, inputs, output, reset, back, pull = residuals
    of_elements, deltas, before = pull(cotangents)
    last = _segment.last_outputs(output, back, reset) if params.get("w_rec") is not None else None
    d_params, d_inputs = _segment.of_synapses(cell, params, inputs, last, deltas)
    of_neuron = jax.tree.map(lambda d: d.sum(tuple(range(d.ndim - 1))), of_elements)
    return d_params | {"neuron": of_neuron}, d_inputs, before, None


_segment_of.defvjp(_forward, _pull)
