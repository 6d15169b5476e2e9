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


def jacobian_columns(fn: Callable[[Any], Any], at: Any) -> list[Any]:
    """`∂fn/∂leaf` for every leaf of `at`, where `fn` is element-wise over neurons.

    A tangent of ones on one leaf moves every neuron, time step and batch element at once, and no
    neuron sees another's: one jvp is one column of every local Jacobian.
    """
    leaves, tree = jax.tree.flatten(at)

    def column(index: int) -> Any:
        tangents = [jnp.ones_like(leaf) if i == index else jnp.zeros_like(leaf) for i, leaf in enumerate(leaves)]
        return jax.jvp(fn, (at,), (jax.tree.unflatten(tree, tangents),))[1]

    return [column(index) for index in range(len(leaves))]


def linearize(step: Callable[..., Any], neuron: Any, state: Any, current: Array) -> Local:
    """Differentiates `step(neuron, state, current)` with `k + 1 + p` jvps over the whole segment.

    Args:
      step: `(neuron, state, current) -> (state, output)`.
      neuron: pytree of `[n]` arrays.
      state: pytree of `[t, *batch, n]` arrays, the state before each step.
      current: `[t, *batch, n]`.

    Returns:
      The local derivatives.
    """
    columns = jacobian_columns(lambda at: step(at[2], at[0], at[1]), (state, current, neuron))
    k = len(jax.tree.leaves(state))
    d_state, d_output = [jax.tree.leaves(column[0]) for column in columns], [column[1] for column in columns]
    return Local(d_state[:k], d_output[:k], d_state[k], d_output[k], d_state[k + 1 :], d_output[k + 1 :])
