"""Whether HYPR's gradient misses a trained start: an `init` of `hyprjax.scan` that is made from parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.extend.core as jec
import jax.numpy as jnp

from hyprjax._checks.axis import ENTERED


def check(name: str, jaxpr: jec.Jaxpr, of_params: int) -> None:
    """Refuses an `init` that depends on one of the first `of_params` operands behind the constants.

    Raises:
      ValueError: with what to do instead.
    """
    _follow(name, jaxpr, [False] * len(jaxpr.constvars) + [i < of_params for i in range(len(jaxpr.invars))])


def _follow(name: str, jaxpr: jec.Jaxpr, trained: Sequence[bool]) -> list[bool]:
    """Which results depend on what is trained; constants are first among the operands."""
    depends: dict[Any, bool] = dict(zip([*jaxpr.constvars, *jaxpr.invars], trained, strict=True))
    for eqn in jaxpr.eqns:
        ins = [not isinstance(v, jec.Literal) and depends[v] for v in eqn.invars]
        what, inner = eqn.primitive.name, eqn.params.get(ENTERED.get(eqn.primitive.name) or "")
        if what == "hyprjax.scan" and any(ins[eqn.params["consts"] :][: eqn.params["carried"]]):
            raise ValueError(
                f"{name}: the init of hyprjax.scan depends on params, but this gradient does not reach what comes "
                "before the first step; use jax.lax.stop_gradient(init) for a start that is not trained, hj.bptt for "
                "one that is"
            )
        if inner is not None and what != "scan":
            outs = _follow(name, getattr(inner, "jaxpr", inner), [*[False] * len(getattr(inner, "consts", ())), *ins])
        else:
            outs = [any(ins) and what != "stop_gradient"] * len(eqn.outvars)
        depends |= {v: out and _real(v.aval) for v, out in zip(eqn.outvars, outs, strict=True)}
    return [not isinstance(v, jec.Literal) and depends[v] for v in jaxpr.outvars]


def _real(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.inexact)
