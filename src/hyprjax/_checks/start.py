"""Whether HYPR's gradient misses a trained start: an `init` of `hyprjax.scan` that is made from parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.extend.core as jec
import jax.numpy as jnp

from hyprjax._checks.axis import ENTERED, scan_lengths


def check(name: str, jaxpr: jec.Jaxpr, trained: Sequence[bool]) -> None:
    """Refuses an `init` that depends on what is trained among constants and operands.

    Raises:
      ValueError: with what to do instead.
    """
    _follow(name, jaxpr, trained)


def of_params(jaxpr: jec.Jaxpr, count: int) -> list[bool]:
    """That the first operands behind the constants are trained."""
    return [False] * len(jaxpr.constvars) + [i < count for i in range(len(jaxpr.invars))]


def _follow(name: str, jaxpr: jec.Jaxpr, trained: Sequence[bool]) -> list[bool]:
    """Which results depend on what is trained; constants are first among the operands."""
    depends: dict[Any, bool] = dict(zip([*jaxpr.constvars, *jaxpr.invars], trained, strict=True))
    for eqn in jaxpr.eqns:
        ins = [not isinstance(v, jec.Literal) and depends[v] for v in eqn.invars]
        what, inner = eqn.primitive.name, eqn.params.get(ENTERED.get(eqn.primitive.name) or "")
        if what == "hyprjax.scan" and any(ins[eqn.params["consts"] :][: eqn.params["carried"]]):
            raise ValueError(
                f"{name}: the init of hyprjax.scan depends on what is differentiated, but this gradient does not reach "
                "what comes before the first step; use jax.lax.stop_gradient(init) for a start that is not trained, "
                "hj.bptt for one that is"
            )
        if what == "scan":
            outs = _loop(name, eqn, ins)
        elif inner is not None:
            outs = _follow(name, getattr(inner, "jaxpr", inner), [*[False] * len(getattr(inner, "consts", ())), *ins])
        else:
            outs = [any(ins) and what != "stop_gradient"] * len(eqn.outvars)
        depends |= {v: out and _real(v.aval) for v, out in zip(eqn.outvars, outs, strict=True)}
    return [not isinstance(v, jec.Literal) and depends[v] for v in jaxpr.outvars]


def _loop(name: str, eqn: jec.JaxprEqn, ins: list[bool]) -> list[bool]:
    """Of a `jax.lax.scan`, as over layers; its carry depends on what any of its steps makes it depend on."""
    consts, carried = scan_lengths(eqn)
    closed = eqn.params["jaxpr"]
    while True:
        outs = _follow(name, closed.jaxpr, [*[False] * len(closed.consts), *ins])
        carry = [a or b for a, b in zip(ins[consts : consts + carried], outs, strict=False)]
        if carry == ins[consts : consts + carried]:
            return outs
        ins = [*ins[:consts], *carry, *ins[consts + carried :]]


def _real(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.inexact)
