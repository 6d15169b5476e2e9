"""What a function does along time is followed: a wrong program is refused with its operation, no right one is."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import hyprjax as hj
from hyprjax import _sequence

T, LENGTH, B, N, CLASSES = 60, 20, 6, 5, 3
CELL, READOUT = hj.alif(), hj.leaky_integrator(4.0)
KEY = jax.random.key(7)
CLOSED_OVER = jnp.linspace(0.0, 1.0, LENGTH)[:, None]
FROZEN = jnp.tile(jnp.eye(N), (LENGTH, 1, 1))


@pytest.fixture
def problem():
    jax.config.update("jax_enable_x64", False)
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "hidden": hj.init_layer(keys[0], CELL, 4, N, recurrent=True),
        "second": hj.init_layer(keys[1], CELL, N, N, recurrent=True),
        "readout": hj.init_layer(keys[2], READOUT, N, CLASSES),
        "w": jnp.ones((CLASSES, CLASSES)),
        "wide": jnp.ones((LENGTH, N)),
        "table": jnp.ones((2 * T, CLASSES)),
    }
    params["hidden"]["w_in"] *= 3
    inputs = jax.random.normal(keys[3], (T, B, 4))
    labels = jax.random.randint(keys[3], (T, B), 0, CLASSES)
    xs = {"inputs": inputs, "labels": labels, "mask": (labels > 0).astype(jnp.float32)}
    return params, xs | {"keys": jax.random.split(KEY, T)}


def spikes(p, x):
    return hj.unroll(CELL, p["hidden"], x["inputs"])


def net(p, x, between=lambda z: z):
    return hj.unroll(READOUT, p["readout"], between(spikes(p, x)))


def ce(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def dropped(key):
    return lambda z: z * jax.random.bernoulli(key, 0.5, z.shape)


RIGHT = {
    "sum": lambda p, x: ce(net(p, x), x["labels"]).sum(),
    "sum of a mean over the batch": lambda p, x: ce(net(p, x), x["labels"]).mean(1).sum(),
    "mean by hand": lambda p, x: jnp.square(net(p, x)).sum() / len(x["labels"]),
    "mean of a part": lambda p, x: (ce(net(p, x), x["labels"]) / x["labels"].size).sum(),
    "mean of sums": lambda p, x: 2.0 * net(p, x).sum((1, 2)).mean() - net(p, x)[..., 0].sum(1).mean(),
    "mean by the size of ones": lambda p, x: net(p, x).sum() / jnp.ones_like(x["mask"]).sum(),
    "mean cross entropy": lambda p, x: ce(net(p, x), x["labels"]).mean(),
    "sum of squares": lambda p, x: jnp.square(net(p, x)).sum() / T,
    "weights per step": lambda p, x: (ce(net(p, x), x["labels"]) * x["mask"]).mean(),
    "sum over time, then linear": lambda p, x: (net(p, x).mean(0) @ p["w"]).sum() * 2.0 - 0.1 * net(p, x).mean(),
    "penalties": lambda p, x: net(p, x).mean() + 1e-3 * sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(p)),
    "masked logits": lambda p, x: ce(net(p, x).at[..., 0].set(-9.0), x["labels"]).sum(),
    "a class more": lambda p, x: ce(jnp.zeros((len(x["labels"]), B, 4)).at[..., 1:].set(net(p, x)), x["labels"]).sum(),
    "logits put into zeros": lambda p, x: ce(
        jax.lax.dynamic_update_slice(jnp.zeros((len(x["labels"]), B, 4)), net(p, x), (0, 0, 1)), x["labels"]
    ).mean(),
    "a bias added": lambda p, x: ce(net(p, x).at[..., 1].add(p["w"][0, 0]), x["labels"]).mean(),
    "branches": lambda p, x: ce(jnp.stack([net(p, x), 2 * net(p, x)], 1).max(1), x["labels"]).sum(),
    "terms stacked": lambda p, x: jnp.stack([net(p, x).mean(), spikes(p, x).mean()]) @ jnp.array([1.0, 0.1]),
    "sums joined": lambda p, x: jnp.concatenate([net(p, x).sum((0, 1)), spikes(p, x).sum((0, 1))]).sum(),
    "a map over time": lambda p, x: jax.lax.map(lambda of: ce(of[0], of[1]).mean(), (net(p, x), x["labels"])).mean(),
    "a loop": lambda p, x: ce(jax.lax.fori_loop(0, 3, lambda i, y: jnp.tanh(y) + y, net(p, x)), x["labels"]).sum(),
    "a table of rates": lambda p, x: (net(p, x) * p["wide"][:1, 0]).mean(),
    "ones at every step": lambda p, x: (net(p, x) * (jnp.ones((len(x["labels"]), 1, 2)) @ jnp.ones((2, 3)))).mean(),
    "vmap over the batch": lambda p, x: jax.vmap(
        lambda i, label: ce(hj.unroll(READOUT, p["readout"], hj.unroll(CELL, p["hidden"], i)), label), 1, 1
    )(x["inputs"], x["labels"]).mean(),
    "vmap over time": lambda p, x: jax.vmap(lambda y, label: ce(y @ p["w"], label).mean())(
        net(p, x), x["labels"]
    ).mean(),
    "keys per step": lambda p, x: net(p, x, lambda z: jax.vmap(lambda k, z: dropped(k)(z))(x["keys"], z)).mean(),
    "the key of the first step": lambda p, x: net(p, x, dropped(x["keys"][0])).mean(),
    "layer norm": lambda p, x: net(
        p, x, lambda z: (z - z.mean(-1, keepdims=True)) / (z.std(-1, keepdims=True) + 1)
    ).mean(),
    "batch norm per step": lambda p, x: net(p, x, lambda z: z - z.mean(1, keepdims=True)).mean(),
    "flattened steps": lambda p, x: ce(net(p, x).reshape(-1, CLASSES), x["labels"].reshape(-1)).mean(),
    "flattened and back": lambda p, x: net(p, x, lambda z: jnp.tanh(z.reshape(-1, N)).reshape(z.shape)).mean(),
    "flattened batch first": lambda p, x: ce(
        net(p, x).swapaxes(0, 1).reshape(-1, CLASSES), x["labels"].swapaxes(0, 1).reshape(-1)
    ).mean(),
    "one-hot labels": lambda p, x: optax.softmax_cross_entropy(net(p, x), jax.nn.one_hot(x["labels"], CLASSES)).mean(),
    "as many classes as steps": lambda p, x: (jax.nn.one_hot(x["labels"], LENGTH).sum(-1) * net(p, x).mean(-1)).mean(),
    "products over time": lambda p, x: jnp.einsum("tbn,tbc->nc", spikes(p, x), net(p, x)).sum() / T,
    "masked": lambda p, x: jnp.where(x["mask"] > 0, ce(net(p, x), x["labels"]), 0.0).mean(),
    "relu and gelu": lambda p, x: jax.nn.gelu(jax.nn.relu(net(p, x))).mean(),
    "scan over channels": lambda p, x: jax.lax.scan(
        lambda c, y: (c + y, y), jnp.zeros(net(p, x).shape[:2]), jnp.moveaxis(net(p, x), -1, 0)
    )[0].mean(),
    "stack of layers": lambda p, x: jax.lax.scan(
        lambda z, layer: (hj.unroll(CELL, layer, z), None),
        spikes(p, x),
        jax.tree.map(lambda a: jnp.stack([a, a]), p["second"]),
    )[0].mean(),
    "checkpoint and jit": lambda p, x: jax.jit(jax.checkpoint(lambda p, x: ce(net(p, x), x["labels"]).mean()))(p, x),
    "argmax and accuracy": lambda p, x: net(p, x).mean() + 0.0 * (net(p, x).argmax(-1) == x["labels"]).mean(),
    "split channels": lambda p, x: sum(part.mean() for part in jnp.split(net(p, x), 3, axis=-1)),
    "concatenated channels": lambda p, x: jnp.concatenate([net(p, x), net(p, x) ** 2], axis=-1).mean(),
    "cumulated channels": lambda p, x: jnp.cumsum(net(p, x), axis=-1).mean(),
    "chosen channels": lambda p, x: net(p, x)[..., 1:].mean() + net(p, x)[..., jnp.array([0, 2])].mean(),
    "max over classes": lambda p, x: (net(p, x).max(-1) - net(p, x).min(-1)).mean(),
    "metrics": lambda p, x: net(p, x).mean(),
    "a penalty for each step": lambda p, x: net(p, x).sum() + len(x["labels"]) * 1e-3 * jnp.square(p["w"]).sum(),
    "printed": lambda p, x: (jax.debug.callback(lambda mean: None, y := net(p, x).mean()), y)[1],
    "as many frozen layers as steps": lambda p, x: net(
        p, x, lambda z: jax.lax.scan(lambda z, w: (jnp.tanh(z @ w), None), z, FROZEN)[0]
    ).mean(),
    "a frozen encoder as wide as steps": lambda p, x: net(
        {**p, "hidden": {**p["hidden"], "w_in": CLOSED_OVER.T.repeat(4, 0) @ p["wide"]}}, x
    ).mean(),
}

WRONG = {
    "last step": (lambda p, x: ce(net(p, x)[-1], x["labels"][-1]).mean(), "slice"),
    "last half": (lambda p, x: ce(net(p, x)[T // 6 :], x["labels"][T // 6 :]).mean(), "slice"),
    "time average": (lambda p, x: ce(net(p, x).mean(0), x["labels"][0]).mean(), ""),
    "nonlinear in counts": (lambda p, x: jnp.square(spikes(p, x).sum(0) - 3).mean(), "sum over time"),
    "masked mean": (lambda p, x: (ce(net(p, x), x["labels"]) * x["mask"]).sum() / x["mask"].sum(), "sum over time"),
    "root of a mean": (lambda p, x: jnp.sqrt(jnp.square(net(p, x)).mean()), "sqrt"),
    "variance over time": (lambda p, x: net(p, x).var(0).mean(), "sum over time"),
    "maximum over time": (lambda p, x: net(p, x).max(0).mean(), "reduce_max"),
    "time of the maximum": (lambda p, x: (net(p, x).argmax(0) * net(p, x).mean(0)).mean(), ""),
    "cumulated": (lambda p, x: jnp.cumsum(net(p, x), 0).mean(), "cumsum"),
    "differences": (lambda p, x: jnp.abs(jnp.diff(net(p, x), axis=0)).mean(), "slice"),
    "products of steps": (lambda p, x: jnp.einsum("tbc,sbc->ts", net(p, x), net(p, x)).mean(), "dot_general"),
    "weights by place": (lambda p, x: (jnp.arange(len(x["labels"]))[:, None, None] * net(p, x)).mean(), "place"),
    "weights by a scan over places": (
        lambda p, x: (jax.lax.scan(lambda c, w: (c, w), 0, CLOSED_OVER)[1][:, :, None] * net(p, x)).mean(),
        "place",
    ),
    "weights closed over": (lambda p, x: (CLOSED_OVER[:, :, None] * net(p, x)).mean(), "place"),
    "contracted with weights": (
        lambda p, x: jnp.einsum("t,tbc->bc", CLOSED_OVER[:, 0], net(p, x)).sum(),
        "dot_general",
    ),
    "delay": (lambda p, x: net(p, x, lambda z: jnp.concatenate([jnp.zeros_like(z[:3]), z[:-3]])).mean(), "slice"),
    "roll": (lambda p, x: net(p, x, lambda z: jnp.roll(z, 1, axis=0)).mean(), ""),
    "padded": (lambda p, x: net(p, x, lambda z: jnp.pad(z, ((2, 0), (0, 0), (0, 0)))[: len(z)]).mean(), ""),
    "flip": (lambda p, x: net(p, x, lambda z: jnp.flip(z, 0)).mean(), "rev"),
    "sorted": (lambda p, x: net(p, x, lambda z: jnp.sort(z, axis=0)).mean(), "sort"),
    "batch norm over time": (lambda p, x: net(p, x, lambda z: z - z.mean((0, 1))).mean(), "sum over time"),
    "gain from the mean": (
        lambda p, x: net({**p, "readout": {**p["readout"], "bias": net(p, x).mean((0, 1))}}, x).mean(),
        "sum",
    ),
    "maximum between": (lambda p, x: net(p, x, lambda z: z - z.max(0)).mean(), "reduce_max"),
    "softmax over time": (lambda p, x: net(p, x, lambda z: jax.nn.softmax(z, axis=0)).mean(), ""),
    "moving average": (
        lambda p, x: net(p, x, lambda z: jax.lax.scan(lambda c, z: (0.9 * c + z, c), z[0] * 0, z)[1]).mean(),
        "",
    ),
    "scan along time": (
        lambda p, x: jax.lax.scan(lambda c, y: (0.9 * c + y, c), jnp.zeros((B, CLASSES)), net(p, x))[1].mean(),
        "scan",
    ),
    "associative scan": (lambda p, x: jax.lax.associative_scan(jnp.add, net(p, x)).mean(), ""),
    "convolution": (
        lambda p, x: net(
            p, x, lambda z: jnp.apply_along_axis(lambda a: jnp.convolve(a, jnp.ones(3), "same"), 0, z)
        ).mean(),
        "",
    ),
    "windows": (
        lambda p, x: jax.lax.reduce_window(net(p, x), 0.0, jax.lax.add, (3, 1, 1), (1, 1, 1), "SAME").mean(),
        "reduce_window",
    ),
    "fourier": (lambda p, x: jnp.abs(jnp.fft.rfft(net(p, x), axis=0)).mean(), "fft"),
    "pooled by reshape": (lambda p, x: net(p, x).reshape(LENGTH // 2, 2, B, CLASSES).max(1).mean(), "reshape"),
    "position": (
        lambda p, x: net(p, {**x, "inputs": x["inputs"] + 0.1 * jnp.arange(LENGTH)[:, None, None]}).mean(),
        "place",
    ),
    "only a position": (
        lambda p, x: (
            hj.unroll(
                CELL, p["hidden"], jnp.broadcast_to(jnp.arange(LENGTH)[:, None, None] * 0.1, (LENGTH, B, 4))
            ).mean()
            + 0 * x["inputs"].mean()
        ),
        "place",
    ),
    "dropout, one key": (lambda p, x: net(p, x, dropped(KEY)).mean(), "random"),
    "noise, made inside": (
        lambda p, x: net(p, x, lambda z: z + jax.random.normal(jax.random.key(3), z.shape)).mean(),
        "random",
    ),
    "stride and repeat": (lambda p, x: net(p, x, lambda z: jnp.repeat(z[::2], 2, axis=0)).mean(), ""),
    "a step set": (lambda p, x: net(p, x).at[0].set(0.0).mean(), ""),
    "last step behind a mask": (lambda p, x: net(p, x).at[..., 0].set(-9.0)[-1].mean(), "slice"),
    "last step of branches": (lambda p, x: jnp.stack([net(p, x)] * 2)[:, -1].mean(), "slice"),
    "weights from linspace": (
        lambda p, x: (jnp.linspace(0, 1, len(x["labels"]))[:, None] * x["mask"] * net(p, x)[..., 0]).mean(),
        "place",
    ),
    "weights from a product": (
        lambda p, x: (jnp.cumprod(jnp.full(len(x["labels"]), 0.9))[:, None, None] * net(p, x)).mean(),
        "place",
    ),
    "weights from a scan": (
        lambda p, x: (
            jax.lax.scan(lambda c, _: (0.9 * c, c), 1.0, None, len(x["labels"]))[1][:, None, None] * net(p, x)
        ).mean(),
        "place",
    ),
    "weight of the last step": (
        lambda p, x: (jnp.zeros(len(x["labels"])).at[-1].set(1.0)[:, None, None] * net(p, x)).mean(),
        "place",
    ),
    "a table, cut": (lambda p, x: (net(p, x) + p["table"][: len(x["labels"]), None]).mean(), "place"),
    "a table, cut dynamically": (
        lambda p, x: (net(p, x) * jax.lax.dynamic_slice_in_dim(p["table"], 0, len(x["labels"]))[:, None]).mean(),
        "place",
    ),
    "steps before each step": (
        lambda p, x: jnp.einsum("ts,sbc->tbc", jnp.tril(jnp.ones((len(x["labels"]),) * 2)), net(p, x)).mean(),
        "dot_general",
    ),
    "pooled by class": (
        lambda p, x: jnp.square(jax.ops.segment_sum(net(p, x)[:, 0], x["labels"][:, 0], 3)).sum(),
        "sum over time",
    ),
    "the last one of a class": (
        lambda p, x: jnp.zeros((3, CLASSES)).at[x["labels"][:, 0]].set(net(p, x)[:, 0]).mean(),
        "scatter",
    ),
    "determinant of correlations": (
        lambda p, x: jnp.linalg.slogdet(jnp.einsum("tbc,tbd->cd", net(p, x), net(p, x)) + jnp.eye(CLASSES))[1],
        "sum over time",
    ),
    "a loop as long as a sum is small": (
        lambda p, x: (
            net(p, x).mean()
            + jax.lax.while_loop(lambda c: c < 3, lambda c: c + 1, jax.lax.stop_gradient(net(p, x).sum()))
        ),
        "while",
    ),
    "two sums multiplied": (lambda p, x: net(p, x).mean() * spikes(p, x).mean(), "sum over time"),
    "logarithm of a sum": (lambda p, x: jnp.log1p(spikes(p, x).sum()), "sum over time"),
}


def trace(fn, params, xs):
    """Traces only: what is refused is refused then."""
    return jax.eval_shape(fn, params, xs)


def value_in_segments(loss, params, xs):
    """As `hypr_value_and_grad` has it, without a gradient: what it finds, and the segments one after the other."""
    reduction = _sequence.plan("hypr_grad", _sequence.call(loss, 0, params, xs, (), {}), LENGTH, check=True)[2]
    net = hj.stream(loss)
    carry, losses = net.init(params, xs), []
    for start in range(0, T, LENGTH):
        value, carry = net.apply(params, carry, jax.tree.map(lambda x, at=start: x[at : at + LENGTH], xs))
        losses.append(float(value))
    return sum(losses) / (1 if reduction == "sum" else len(losses))


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_a_sum_over_steps_is_let_through(problem, name):
    params, xs = problem
    trace(hj.hypr_grad(RIGHT[name], segment_length=LENGTH), params, xs)
    if "key" not in name:
        whole = float(RIGHT[name](params, xs))
        assert value_in_segments(RIGHT[name], params, xs) == pytest.approx(whole, rel=1e-5, abs=1e-6)


def test_the_value_is_that_of_the_transform(problem):
    for name in ("sum", "mean cross entropy"):
        value, _ = jax.jit(hj.hypr_value_and_grad(RIGHT[name], segment_length=LENGTH))(*problem)
        assert float(value) == pytest.approx(value_in_segments(RIGHT[name], *problem), rel=1e-5)


def test_a_loss_that_is_neither_sum_nor_mean_is_refused(problem):
    params, xs = problem
    penalty = lambda p: sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(p))  # noqa: E731
    for loss in (
        lambda p, x: net(p, x).sum() + 1e-3 * penalty(p),
        lambda p, x: net(p, x).sum() + net(p, x).mean(),
        lambda p, x: net(p, x).mean() / len(x["labels"]),
    ):
        with pytest.raises(ValueError, match="neither a sum nor a mean over time steps"):
            trace(hj.hypr_grad(loss, segment_length=LENGTH), params, xs)
        trace(hj.hypr_grad(loss, segment_length=LENGTH, reduction="sum"), params, xs)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_the_same_for_every_segment_length_is_refused(problem, name):
    loss, operation = WRONG[name]
    params, xs = problem
    with pytest.raises(ValueError, match=r"(?s)hypr_grad: .*not the same for every segment length") as error:
        trace(hj.hypr_grad(loss, segment_length=LENGTH), params, xs)
    assert operation in str(error.value)
    assert re.search(r"test_time\.py:\d+", str(error.value)), "the user's line"
    if "CLOSED" not in name and name not in (
        "weights closed over",
        "weights by a scan over places",
        "contracted with weights",
        "pooled by reshape",
        "position",
        "only a position",
    ):
        trace(hj.hypr_grad(loss), params, xs)  # one segment: nothing to refuse
    trace(hj.hypr_grad(loss, segment_length=LENGTH, check=False), params, xs)


BETWEEN = [
    name
    for name in WRONG
    if name in ("delay", "flip", "sorted", "batch norm over time", "dropout, one key", "position")
]


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("wrap", [hj.hypr, hj.bptt])
def test_models_that_mix_time_between_layers_are_refused(problem, name, wrap):
    loss = WRONG[name][0]
    model = lambda p, x: net(p, x) + 0 * loss(p, x)  # noqa: E731
    with pytest.raises(ValueError, match=f"{wrap.__name__}: what enters unroll is not the same"):
        trace(wrap(model, segment_length=LENGTH), *problem)


@pytest.mark.parametrize("wrap", [hj.hypr, hj.bptt])
@pytest.mark.parametrize(
    "of",
    [
        lambda y: jnp.cumsum(y, 0),
        lambda y: y - y.mean(0),
        lambda y: y[::-1],
        lambda y: y * jnp.arange(len(y))[:, None, None],
        lambda y: jax.random.normal(KEY, y.shape) + y,
        lambda y: jnp.broadcast_to(y.mean(0), y.shape),
        lambda y: y / len(y),
        lambda y: y * len(y) ** -0.5,
        lambda y: y.at[..., 0].set(0.0)[::-1],
    ],
)
def test_outputs_that_mix_time_are_refused(problem, of, wrap):
    with pytest.raises(ValueError, match=f"{wrap.__name__}: an output is not the same"):
        trace(wrap(lambda p, x: of(net(p, x)), segment_length=LENGTH), *problem)


@pytest.mark.parametrize("wrap", [hj.hypr, hj.bptt])
def test_inputs_scaled_by_the_length_are_refused(problem, wrap):
    with pytest.raises(ValueError, match=r"what enters unroll .* it depends on the number of steps of a segment"):
        trace(wrap(lambda p, x: net(p, x, lambda z: z * len(z)), segment_length=LENGTH), *problem)


def test_what_cannot_be_told_is_asked_for(problem):
    """A callback is not followed, and may be anything of its operands."""
    outside = lambda y: jax.pure_callback(lambda y: y.sum(0), jax.ShapeDtypeStruct(y.shape[1:], y.dtype), y)  # noqa: E731
    loss = lambda p, x: (outside(jax.lax.stop_gradient(net(p, x))) * 0 + net(p, x).sum(0)).sum()  # noqa: E731
    with pytest.raises(ValueError, match="cannot be told"):
        trace(hj.hypr_grad(loss, segment_length=LENGTH), *problem)
    trace(hj.hypr_grad(loss, segment_length=LENGTH, reduction="sum"), *problem)


def test_without_the_check_a_sum_is_still_a_sum(problem):
    of = [hj.hypr_value_and_grad(RIGHT["sum"], segment_length=LENGTH, check=c)(*problem)[0] for c in (True, False)]
    assert float(of[0]) == float(of[1])


def test_metrics_may_do_what_they_like(problem):
    loss = lambda p, x: (net(p, x).mean(), {"last": net(p, x)[-1].mean(), "peak": net(p, x).max()})  # noqa: E731
    trace(hj.hypr_grad(loss, segment_length=LENGTH, has_aux=True), *problem)


def pull(learner, params, xs, *args):
    return jax.eval_shape(lambda *a: learner.value_and_grad(a[0], learner.init(*a), *a[1:]), params, xs, *args)


def test_a_stream_has_the_loss_of_its_segment_and_a_key_for_each_call(problem):
    params, xs = problem
    of_segment = hj.hypr_stream(lambda p, x: ce(net(p, x)[-1], x["labels"][-1]).mean())
    pull(of_segment, params, xs)
    with_key = hj.hypr_stream(lambda p, x, key: net(p, x, dropped(key)).mean())
    pull(with_key, params, xs, KEY)
    for loss in (WRONG["dropout, one key"][0], WRONG["delay"][0], WRONG["noise, made inside"][0]):
        with pytest.raises(ValueError, match="hypr_stream: what enters unroll"):
            pull(hj.hypr_stream(loss), params, xs)


def test_one_step_per_segment_is_followed_too(problem):
    with pytest.raises(ValueError, match="sum over time"):
        trace(hj.hypr_grad(WRONG["nonlinear in counts"][0], segment_length=1), *problem)
    trace(hj.hypr_grad(RIGHT["mean cross entropy"], segment_length=1), *problem)


def test_data_with_its_batch_first(problem):
    params, xs = problem
    with pytest.raises(ValueError, match="time is axis 1 there"):
        hj.hypr_grad(lambda p, x: hj.unroll(CELL, p["hidden"], x).mean(), segment_length=B, time_axis=1)(
            params, xs["inputs"].swapaxes(0, 1)
        )
