"""Eligibility traces of low rank, for layers whose full traces do not fit into memory.

The traces of the weights at the end of a segment are, for each state variable, a sum of `λ + k r` outer products: of a
presynaptic vector and a postsynaptic one (`_segment`, with the incoming traces as such products too):

    ε_λ = Σ_t p_t ⊗ (R_t B_t) + Σ_c' Σ_ρ pre_c'ρ ⊗ (R_0 post_c'ρ) = Aᵀ C,      A [λ + k r, P],  C [λ + k r, n]

It is never formed. What is kept is `r` outer products `preᵀ post` near the best approximation of that rank, found by
subspace iteration with products of `A` and `C` alone: memory `O(B (P + n) k r)` instead of `O(B P n k)`. Where the
traces are of that rank it is exact: neurons that share one leak and have no adaptation have traces of rank one, the
low-pass filtered presynaptic activity.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hyprjax import _sharding


class Factors(NamedTuple):
    """The traces of one state variable as `r` outer products.

    Attributes:
      pre: `[*batch, r, P]`, orthonormal rows.
      post: `[*batch, r, n]`.
    """

    pre: Float[Array, "*batch r P"]
    post: Float[Array, "*batch r n"]


def compress(A: Float[Array, "*batch s P"], C: Float[Array, "*batch s n"], rank: int) -> Factors:
    """`Aᵀ C` to this rank, by one and a half rounds of subspace iteration."""
    of_groups = jnp.arange(A.shape[-2]) % rank == jnp.arange(rank)[:, None]
    rows = _product("rs,...sp->...rp", of_groups.astype(A.dtype), A)
    post = _times(rows, A, C)
    wide = _times(post, C, A).astype(np.promote_types(A.dtype, np.float32))
    pre = jnp.moveaxis(jnp.linalg.qr(jnp.moveaxis(wide, -1, -2)).Q, -1, -2).astype(A.dtype)
    return Factors(pre, _times(pre, A, C))


def contract(q: list[Float[Array, "*batch n"]], factors: list[Factors]) -> Float[Array, "P n"]:
    """`Σ_batch q_0·ε_0`: one GEMM."""
    pre = jnp.concatenate([f.pre for f in factors], axis=-2)
    post = jnp.concatenate([q_c[..., None, :] * f.post for q_c, f in zip(q, factors, strict=True)], axis=-2)
    axes = tuple(range(pre.ndim - 1))
    of_neurons = _sharding.over(post, None, _sharding.spec(post)[-1])
    return jnp.tensordot(pre, post, axes=(axes, axes), out_sharding=of_neurons)


def _times(rows: Array, left: Array, right: Array) -> Array:
    """`rows leftᵀ right`, `[*batch, r, ·]`."""
    inner = _product("...rp,...sp->...rs", rows, left)
    return _product("...rs,...sn->...rn", inner, right, _sharding.spec(right)[-1])


def _product(subscripts: str, a: Array, b: Array, last: Any = None) -> Array:
    """A product whose batch is sharded as that of `b` and whose last axis over `last`."""
    return jnp.einsum(subscripts, a, b, out_sharding=_sharding.over(b, *_sharding.spec(b)[:-2], None, last))
