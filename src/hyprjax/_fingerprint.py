"""What a jaxpr does, as a value that can be compared: two traces of one function have the same fingerprint.

JAX compares jaxprs by identity, and a function that is traced anew has a new one. With a fingerprint as the static
argument of a jitted function, what was compiled for the first trace serves all later ones: calls outside of `jax.jit`
compile once, and yet see every change of what the function closes over.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax
import jax.extend.core as jec
import jax.numpy as jnp
import numpy as np


class _Same:
    """Equal to itself alone."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


class Fingerprint:
    """What a jaxpr does, with a hash that is computed once."""

    def __init__(self, value: Hashable):
        self.value, self.hash = value, hash(value)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Fingerprint) and self.hash == other.hash and self.value == other.value
        )


def fingerprint(jaxpr: jec.Jaxpr, *, rules: bool = True) -> Fingerprint:
    """Equal for jaxprs with the same equations on the same types, whatever their variables are called.

    Args:
      jaxpr: what to look at.
      rules: whether the derivatives of `jax.custom_jvp` and `jax.custom_vjp` functions count, too.
    """
    numbers: dict[jec.Var, int] = {}

    def atom(v: Any) -> Hashable:
        if isinstance(v, jec.Literal):
            return v.aval, np.asarray(v.val).tobytes()
        return numbers.setdefault(v, len(numbers))

    def equation(eqn: jec.JaxprEqn) -> Hashable:
        params = eqn.params
        if eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call"):
            params = {"value": params["call_jaxpr"], "rule": _rule(eqn) if rules else None}
        return eqn.primitive, _Same(eqn.ctx), _value(params, rules), *map(atom, eqn.invars), *map(atom, eqn.outvars)

    entering = [*jaxpr.constvars, *jaxpr.invars]
    types, places = tuple(v.aval for v in entering), tuple(map(atom, entering))
    return Fingerprint((types, places, tuple(map(equation, jaxpr.eqns)), tuple(map(atom, jaxpr.outvars))))


def _value(x: Any, rules: bool) -> Hashable:
    """A parameter of an equation."""
    if isinstance(opened := getattr(x, "jaxpr", x), jec.Jaxpr):
        return fingerprint(opened, rules=rules), tuple(map(_Same, getattr(x, "consts", ())))
    if isinstance(x, dict):
        return tuple((name, _value(value, rules)) for name, value in x.items())
    if isinstance(x, tuple | list):
        return (type(x), *[_value(value, rules) for value in x])
    try:
        hash(x)
    except TypeError:
        return _Same(x)
    return x


def _rule(eqn: jec.JaxprEqn) -> Hashable:
    """The pullback of a function with a rule of its own, for that rule is a new Python function in every trace."""
    types: list[Any] = [v.aval for v in (*eqn.invars, *eqn.outvars)]
    if not all(jnp.issubdtype(aval.dtype, jnp.floating) for aval in types):
        return _Same(eqn)
    call = lambda *ins: eqn.primitive.bind(*ins, **eqn.primitive.get_bind_params(eqn.params))  # noqa: E731
    inner = len(eqn.invars)
    pull = lambda *args: jax.vjp(call, *args[:inner])[1]([*args[inner:]])  # noqa: E731
    try:
        closed = jax.make_jaxpr(pull)(*types)
    except Exception:  # a rule that cannot be traced here is equal to itself alone; what is wrong with it shows in use
        return _Same(eqn)
    return fingerprint(closed.jaxpr, rules=False), tuple(map(_Same, closed.consts))
