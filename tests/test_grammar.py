"""No loss made of operations along time passes the check of time and has another value in segments."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hyprjax as hj
from hyprjax import _sequence

T, B, N = 12, 2, 3
CELL = hj.leaky_integrator(3.0)
EMA = lambda c, y: (0.5 * c + y, 0.5 * c + y)  # noqa: E731


def by_step(x, values):
    return x * values[:, None, None]


def in_pairs(z):
    even = len(z) // 2 * 2
    means = z[:even].reshape(len(z) // 2, 2, B, N).mean(1)
    return jnp.concatenate([jnp.repeat(means, 2, 0), z[even:]])


SIGNAL = {  # [T, B, N] to [T, B, N]
    "tanh": lambda z, xs: jnp.tanh(z),
    "affine": lambda z, xs: 2.0 * z + 0.5,
    "channels sorted": lambda z, xs: jnp.sort(z, -1),
    "channels cumulated": lambda z, xs: jnp.cumsum(z, -1),
    "channels normalised": lambda z, xs: (z - z.mean(-1, keepdims=True)) / (1 + z.std(-1, keepdims=True)),
    "softmax": lambda z, xs: jax.nn.softmax(z),
    "batch centred": lambda z, xs: z - z.mean(1, keepdims=True),
    "weights of the steps": lambda z, xs: by_step(z, xs["weight"]),
    "masked": lambda z, xs: jnp.where(xs["weight"][:, None, None] > 0, z, 0.0),
    "turned": lambda z, xs: jnp.transpose(jnp.exp(-jnp.square(jnp.transpose(z, (2, 0, 1)))), (1, 2, 0)),
    "flat and back": lambda z, xs: jnp.sin(z.reshape(-1, N)).reshape(z.shape),
    "mapped over steps": lambda z, xs: jax.vmap(lambda y, w: y * w + y.max())(z, xs["weight"]),
    "outer products": lambda z, xs: jnp.einsum("tbi,tbj->tbi", z, z),
    "mixed channels": lambda z, xs: z @ jnp.arange(9.0).reshape(N, N),
    "chosen channels": lambda z, xs: z[..., jnp.array([2, 0, 1])],
    "pushed": lambda z, xs: z + xs["inputs"],
    "delayed": lambda z, xs: jnp.concatenate([jnp.zeros_like(z[:2]), z[:-2]]),
    "rolled": lambda z, xs: jnp.roll(z, 1, 0),
    "reversed": lambda z, xs: z[::-1],
    "cumulated": lambda z, xs: jnp.cumsum(z, 0),
    "centred": lambda z, xs: z - z.mean(0),
    "largest over time": lambda z, xs: z - z.max(0, keepdims=True),
    "sorted": lambda z, xs: jnp.sort(z, 0),
    "by place": lambda z, xs: by_step(z, jnp.arange(len(z)) * 1.0),
    "averaged": lambda z, xs: jax.lax.scan(EMA, jnp.zeros((B, N)), z)[1],
    "pairs": lambda z, xs: in_pairs(z),
    "scores": lambda z, xs: jnp.einsum("tbi,sbi,sbj->tbj", z, z, z),
    "first step": lambda z, xs: z - z[:1],
    "softmax over time": lambda z, xs: jax.nn.softmax(z, axis=0),
    "padded": lambda z, xs: jnp.pad(z, ((1, 0), (0, 0), (0, 0)))[:-1],
    "clipped by the mean": lambda z, xs: jnp.minimum(z, z.mean()),
}
LOSS = {  # [T, B, N] to a scalar
    "mean": lambda z, xs: z.mean(),
    "sum": lambda z, xs: z.sum(),
    "mean of squares": lambda z, xs: jnp.square(z).mean(),
    "sum over steps of means": lambda z, xs: z.mean((1, 2)).sum(),
    "mean over steps of sums": lambda z, xs: z.sum((1, 2)).mean(0),
    "sum by hand": lambda z, xs: jnp.ones(len(z)) @ z[:, 0, 0],
    "mean by hand": lambda z, xs: z.sum() / len(z),
    "weighted": lambda z, xs: by_step(z, xs["weight"]).sum(),
    "of labels": lambda z, xs: jnp.take_along_axis(jax.nn.log_softmax(z), xs["labels"][..., None], -1).mean(),
    "flat": lambda z, xs: jnp.abs(z.reshape(-1)).mean(),
    "inner product": lambda z, xs: jnp.vdot(z, xs["inputs"]),
    "masked mean": lambda z, xs: by_step(z, xs["weight"]).sum() / xs["weight"].sum(),
    "last": lambda z, xs: z[-1].mean(),
    "largest": lambda z, xs: z.max(0).mean(),
    "variance": lambda z, xs: z.var(),
    "of the average": lambda z, xs: jnp.square(z.mean(0)).sum(),
    "log-sum-exp": lambda z, xs: jax.nn.logsumexp(z),
    "differences": lambda z, xs: jnp.square(jnp.diff(z, axis=0)).sum(),
    "product": lambda z, xs: jnp.prod(1 + 0.01 * z),
    "median": lambda z, xs: jnp.median(z),
    "any": lambda z, xs: jnp.where(z.sum() > 0, 1.0, 2.0) * z.mean(),
}
AFTER = {
    "as it is": lambda loss, z: loss,
    "scaled": lambda loss, z: 0.5 * loss,
    "with a constant": lambda loss, z: loss + 3.0,
    "with a mean": lambda loss, z: loss + z.mean(),
    "with a sum": lambda loss, z: loss - 0.1 * z.sum(),
    "squared": lambda loss, z: jnp.square(loss),
    "root": lambda loss, z: jnp.sqrt(jnp.abs(loss)),
    "times a mean": lambda loss, z: loss * z.mean(),
    "per step": lambda loss, z: loss / len(z),
}


def mostly(table, right):
    """Names of the table, three of four times one of those up to `right`."""
    known = list(table)
    good = known[: known.index(right) + 1]
    return st.one_of(*[st.sampled_from(good)] * 3, st.sampled_from(known))


SIGNALS = st.lists(mostly(SIGNAL, "pushed"), max_size=2)
PROGRAM = st.tuples(SIGNALS, SIGNALS, mostly(LOSS, "inner product"), mostly(AFTER, "with a sum"))


def loss_of(program, unroll):
    before, behind, loss, after = program

    def loss_fn(params, xs):
        z = xs["inputs"]
        for operation in before:
            z = SIGNAL[operation](z, xs)
        z = unroll(params, z)
        for operation in behind:
            z = SIGNAL[operation](z, xs)
        return AFTER[after](LOSS[loss](z, xs), z)

    return loss_fn


class Continued:
    """The layer by a loop in NumPy that goes on where it stopped."""

    def __init__(self):
        self.v = np.zeros((B, N))

    def __call__(self, params, inputs):
        decay, outputs = np.exp(-1 / np.asarray(params["neuron"]["tau"])), []
        for x in np.asarray(inputs):
            self.v = decay * self.v + (1 - decay) * (x @ np.asarray(params["w_in"]))
            outputs.append(self.v)
        return jnp.asarray(np.stack(outputs))


PASSED = {"passed": 0, "refused": 0}


@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(PROGRAM, st.sampled_from([6, 5]))
def differs_or_is_refused(program, length):
    rng = np.random.default_rng(0)
    xs = {"inputs": rng.normal(size=(T, B, N)), "weight": (rng.random(T) > 0.4) * rng.random(T)}
    xs = {**{name: jnp.asarray(x) for name, x in xs.items()}, "labels": jnp.asarray(rng.integers(0, N, (T, B)))}
    params = hj.init_layer(jax.random.key(0), CELL, N, N, bias=False, dtype=float)
    call = _sequence.call(loss_of(program, lambda p, x: hj.unroll(CELL, p, x)), 0, params, xs, (), {})
    try:
        reduction = _sequence.plan("hypr_grad", call, length, check=True)[2]
    except ValueError as error:
        if not re.search("not the same for every segment length|unroll ran over", str(error)):
            raise
        reduction = "neither"
    PASSED["refused" if reduction == "neither" else "passed"] += 1
    if reduction == "neither":
        return
    whole = loss_of(program, Continued())(params, xs)
    in_segments, total = loss_of(program, Continued()), 0.0
    for start in range(0, T, length):
        segment = {name: x[start : start + length] for name, x in xs.items()}
        weight = 1.0 if reduction == "sum" else len(segment["inputs"]) / T
        total += weight * float(in_segments(params, segment))
    assert total == pytest.approx(float(whole), rel=1e-9, abs=1e-9), (program, length, reduction)


def test_no_loss_of_a_grammar_passes_and_depends_on_the_segment_length():
    differs_or_is_refused()
    assert min(PASSED.values()) > 200, PASSED
