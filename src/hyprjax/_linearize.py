"""Local derivatives of a cell along a segment, one jvp per column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Leaves = list[Float[Array, "t *batch n"]]


class Local(NamedTuple):
    """Derivatives of one step, for all time steps, batch elements and neurons at once.

    With `k` state variables and `p` neuron parameters, as nested lists of `[t, *batch, n]` arrays:

    Attributes:
      J: `k` columns of `k`, `J[d][c] = ∂s_t[c] / ∂s_{t-1}[d]`.
      G: `k`, `∂z_t / ∂s_{t-1}[d]`.
      B: `k`, `∂s_t[c] / ∂I_t`.
      g: `∂z_t / ∂I_t`.
      D: `p` columns of `k`, `∂s_t[c] / ∂φ[i]`.
      h: `p`, `∂z_t / ∂φ[i]`.
    """

    J: list[Leaves]
    G: Leaves
    B: Leaves
    g: Float[Array, "t *batch n"]
    D: list[Leaves]
    h: Leaves


def linearize(step: Callable[..., Any], neuron: Any, state: Any, current: Array) -> Local:
    """Differentiates `step(neuron, state, current)`, element-wise over neurons.

    A tangent of ones on one component moves every neuron at every time step at once, and no neuron
    sees another's: one jvp is one column of every local Jacobian.

    Args:
      step: `(neuron, state, current) -> (state, output)`.
      neuron: pytree of `[n]` arrays.
      state: pytree of `[t, *batch, n]` arrays, the state before each step.
      current: `[t, *batch, n]`.

    Returns:
      The local derivatives.
    """
    inputs, tree = jax.tree.flatten((state, current, neuron))
    zeros = [jnp.zeros_like(leaf) for leaf in inputs]

    def column(index: int) -> tuple[Leaves, Array]:
        tangents = [*zeros[:index], jnp.ones_like(inputs[index]), *zeros[index + 1 :]]
        unflatten = jax.tree.unflatten
        _, (d_state, d_output) = jax.jvp(step_of_leaves, (unflatten(tree, inputs),), (unflatten(tree, tangents),))
        return jax.tree.leaves(d_state), d_output

    def step_of_leaves(args):
        state, current, neuron = args
        return step(neuron, state, current)

    k = len(jax.tree.leaves(state))
    columns = [column(index) for index in range(len(inputs))]
    by_state, by_current, by_neuron = columns[:k], columns[k], columns[k + 1 :]
    return Local(
        J=[d_state for d_state, _ in by_state],
        G=[d_output for _, d_output in by_state],
        B=by_current[0],
        g=by_current[1],
        D=[d_state for d_state, _ in by_neuron],
        h=[d_output for _, d_output in by_neuron],
    )
