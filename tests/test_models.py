"""`hypr` and `bptt`: any loss of a wrapped model, with the value of the model and the gradient that was promised."""

from functools import partial

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from flax import nnx
from networks import assert_close, loss_of_outputs, make_data, make_loss, make_model, make_stack

import hyprjax as hj

STACKS = [("custom",), ("brf", "leaky_integrator"), ("alif", "custom", "filtered")]
WRAPS = {"hypr": hj.hypr, "bptt": hj.bptt}


def problem(names, steps=12, batch=3, resets=False):
    sizes = (4, 3, 4)[-len(names) :]
    cells, params = make_stack(names, 3, sizes)
    return cells, params, make_data(steps, (batch,), 3, sizes[-1], resets=resets)


LOSSES = {
    "last step": lambda y: optax.softmax_cross_entropy_with_integer_labels(y[-1], jnp.arange(len(y[-1])) % 2).mean(),
    "time average": lambda y: optax.softmax_cross_entropy_with_integer_labels(
        y.mean(0), jnp.arange(y.shape[1]) % 2
    ).mean(),
    "counts": lambda y: jnp.square(y.sum(0) - 3.0).mean(),
    "maximum": lambda y: jnp.sin(y.max(0)).sum(),
    "masked mean": lambda y: (y[3:] ** 2).sum() / jnp.square(y).sum(),
    "of every step": lambda y: jnp.sin(y).mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_hypr_of_any_loss_is_the_cut_gradient_with_the_value_of_the_model(name):
    """At λ = T the gradient is that of BPTT without explicit recurrence, at every λ the value is that of the model."""
    cells, params, xs = problem(("brf", "leaky_integrator"), steps=60)
    model, loss = make_model(cells), LOSSES[name]
    whole = jax.jit(jax.value_and_grad(lambda p: loss(hj.hypr(model, segment_length=60)(p, xs))))(params)
    assert_close(whole[1], oracle.bptt(cells, loss, params, xs["inputs"], cut=True))
    for segment_length in (20, 7):
        wrapped = hj.hypr(model, segment_length=segment_length)
        value, _ = jax.jit(jax.value_and_grad(lambda p: loss(wrapped(p, xs))))(params)  # noqa: B023
        assert jnp.allclose(value, loss(model(params, xs)), rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_hypr_with_segment_credit_over_the_whole_sequence_is_exact(name):
    cells, params, xs = problem(("custom", "leaky_integrator"))
    model, loss = make_model(cells), LOSSES[name]
    wrapped = hj.hypr(model, segment_length=12, recurrent_credit="segment")
    exact = jax.grad(lambda p, xs: loss(model(p, xs)), argnums=0)(params, xs)
    assert_close(jax.jit(jax.grad(lambda p: loss(wrapped(p, xs))))(params), exact)


@pytest.mark.parametrize("name", ["lif", "se_adlif", "brf", "custom"])
@pytest.mark.parametrize("loss", ["last step", "time average"])
def test_with_the_readout_outside_the_gradient_does_not_depend_on_segment_length(name, loss):
    """Credit through the readout's memory passes every segment border, because JAX carries it."""
    cells, params, xs = problem((name, "leaky_integrator"))
    del params[1]["w_rec"]  # a readout
    hidden, loss = make_model(cells[:1]), LOSSES[loss]
    expected = oracle.bptt(cells, loss, params, xs["inputs"], cut=True)
    for segment_length in (1, 7, 12):
        wrapped = hj.hypr(hidden, segment_length=segment_length)
        actual = jax.jit(jax.grad(lambda p: loss(hj.unroll(cells[1], p[1], wrapped(p[:1], xs)))))(params)  # noqa: B023
        assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize("segment_length", [1, 5, 6, 100])
@pytest.mark.parametrize("names", STACKS)
@pytest.mark.parametrize("resets", [False, True])
def test_bptt_is_exact_for_every_segment_length(names, segment_length, resets):
    cells, params, xs = problem(names, resets=resets)
    model = make_model(cells)

    def loss(params, inputs, scale, model):
        y = model(params, {**xs, "inputs": inputs}, scale)
        return jnp.sin(y.mean(0)).sum() + loss_of_outputs(y, xs["weights"])

    scaled = lambda params, xs, scale: scale * model(params, xs)  # noqa: E731
    args = params, xs["inputs"], jnp.float64(1.3)
    f, g = (
        jax.jit(jax.value_and_grad(partial(loss, model=m), argnums=(0, 1, 2)))(*args)
        for m in (scaled, hj.bptt(scaled, segment_length=segment_length))
    )
    assert_close(g, f, 1e-12)


def test_hypr_is_hypr_grad_where_the_loss_is_a_sum_over_steps():
    cells, params, xs = problem(("custom", "leaky_integrator"), resets=True)
    model = make_model(cells)
    for credit in ("none", "segment"):
        options = {"segment_length": 5, "recurrent_credit": credit}
        wrapped = jax.grad(lambda p: loss_of_outputs(hj.hypr(model, **options)(p, xs), xs["weights"]))  # noqa: B023
        summed = lambda p, xs: loss_of_outputs(model(p, xs), xs["weights"])  # noqa: E731
        assert_close(wrapped(params), hj.hypr_grad(summed, reduction="sum", **options)(params, xs), 1e-12)


@pytest.mark.parametrize("wrap", WRAPS)
def test_gradients_of_inputs_arguments_and_what_is_closed_over(wrap):
    """One feed-forward layer and one segment: everything is exact. In several segments sums and pieces are the same."""
    cells, params, xs = problem(("custom",))
    params = [{name: leaf for name, leaf in params[0].items() if name != "w_rec"}]
    model = make_model(cells)

    def loss(everything, wrapper):
        params, inputs, gain, shift = everything
        scaled = lambda params, xs, gain: {"y": gain * model(params, xs) + jnp.sin(shift), "count": xs["inputs"] > 0}  # noqa: E731
        outputs = wrapper(scaled)(params, {"inputs": inputs, "index": jnp.arange(12)}, gain)
        return jnp.sin(outputs["y"].mean(0)).sum() + jnp.where(outputs["count"], 1.0, 0.0).mean()

    everything = params, xs["inputs"], jnp.array([1.0, 2.0, 0.5, 3.0]), jnp.float64(0.3)
    exact = jax.grad(loss)(everything, lambda f: f)
    lengths = (12, 5) if wrap == "bptt" else (12,)
    for segment_length in lengths:
        assert_close(jax.grad(loss)(everything, partial(WRAPS[wrap], segment_length=segment_length)), exact, 1e-12)
    parts = jax.grad(loss)(everything, partial(WRAPS[wrap], segment_length=5))
    assert_close((parts[0], parts[2], parts[3]), (exact[0], exact[2], exact[3]), 1e-12)


@pytest.mark.parametrize("wrap", WRAPS)
def test_models_of_bool_and_int_arrays(wrap):
    cells, params, xs = problem(("custom", "leaky_integrator"))
    del params[1]["w_rec"]  # a readout
    spikes = xs["inputs"] > 0
    model = WRAPS[wrap](lambda p, x, table: make_model(cells)(p, {"inputs": table[x.astype(int)]}), segment_length=5)
    table = jnp.array([0.0, 1.0])
    grads = jax.grad(lambda p, table: model(p, spikes, table).sum(), argnums=(0, 1))(params, table)
    plain = lambda p, table: make_model(cells)(p, {"inputs": table[spikes.astype(int)]}).sum()  # noqa: E731
    if wrap == "bptt":
        assert_close(grads, jax.grad(plain, argnums=(0, 1))(params, table))
    assert_close(grads[0][1], jax.grad(plain)(params, table)[1])  # exact under every rule
    integers = jax.grad(lambda p, x: model(p, x, table).sum(), argnums=1, allow_int=True)(params, spikes.astype(int))
    assert integers.dtype == jax.dtypes.float0


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_model_on_a_loss_that_does_not_depend_on_it(wrap):
    cells, params, xs = problem(("custom",))
    model = WRAPS[wrap](make_model(cells), segment_length=5)
    grads = jax.grad(lambda p: jax.lax.stop_gradient(model(p, xs)).sum() + p[0]["bias"].sum())(params)
    assert (grads[0]["bias"] == 1).all()
    assert (grads[0]["w_in"] == 0).all()


@pytest.mark.parametrize("jit", [lambda f: f, jax.jit])
def test_second_derivatives_are_refused(jit):
    """They would be another function's: nothing but the cotangents goes through a gradient."""
    cells, params, xs = problem(("custom",))
    model, loss_fn = make_model(cells), make_loss(cells)
    learner = hj.hypr_stream(loss_fn)
    carry = learner.init(params, xs)
    norm = lambda tree: sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(tree))  # noqa: E731
    gradient = lambda wrap: jit(jax.grad(lambda p: norm(wrap(model)(p, xs))))  # noqa: E731
    for name, result in {
        "hypr": lambda p: norm(gradient(hj.hypr)(p)),
        "bptt": lambda p: norm(gradient(hj.bptt)(p)),
        "hypr_grad": lambda p: norm(jit(hj.hypr_grad(loss_fn, segment_length=5))(p, xs)),
        "hypr_stream": lambda p: norm(jit(learner.value_and_grad)(p, carry, xs)[1]),
    }.items():
        with pytest.raises(TypeError, match=f"^{name}: the result of this transform is differentiated once more"):
            jax.grad(result)(params)


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_derivative_that_goes_through_the_cotangents_alone_is_let_through(wrap):
    cells, params, xs = problem(("custom",))
    readout = jnp.linspace(-1.0, 1.0, 8).reshape(4, 2)

    def mixed(model):
        of_model = jax.grad(lambda p, readout: jnp.sin(model(p, xs) @ readout).sum())
        return jax.jacfwd(of_model, argnums=1)(params, readout)

    whole = partial(hj.hypr, recurrent_credit="segment") if wrap == "hypr" else hj.bptt
    assert_close(mixed(whole(make_model(cells))), mixed(make_model(cells)))


@pytest.mark.parametrize("wrap", WRAPS)
def test_vmap_over_seeds_and_jit(wrap):
    cells, _, xs = problem(("brf", "leaky_integrator"), resets=True)
    many = [make_stack(("brf", "leaky_integrator"), 3, (3, 4), seed=seed)[1] for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    model = WRAPS[wrap](make_model(cells), segment_length=5)
    gradient = jax.value_and_grad(lambda p, xs: jnp.sin(model(p, xs).mean(0)).sum())
    batched = jax.jit(jax.vmap(gradient, (0, None)))(stacked, xs)
    for seed, params in enumerate(many):
        assert_close(jax.tree.map(lambda leaf, i=seed: leaf[i], batched), gradient(params, xs), 1e-12)


# --- axes of time ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("segment_length", [4, 5, 12])
def test_time_may_be_any_axis(wrap, segment_length):
    cells, params, xs = problem(("custom", "leaky_integrator"))
    model = make_model(cells)
    wrapper = partial(WRAPS[wrap], segment_length=segment_length)
    loss = lambda y: jnp.sin(y.mean(0)).sum()  # noqa: E731  of [T, B, n]
    expected = jax.value_and_grad(lambda p, x: loss(wrapper(model)(p, {"inputs": x})), argnums=(0, 1))(
        params, xs["inputs"]
    )

    swapped = lambda f: lambda p, x: f(p, {"inputs": x.swapaxes(0, 1)}).swapaxes(0, 1)  # noqa: E731
    batch_first = wrapper(swapped(model), time_axis=1)
    value, (of_params, of_inputs) = jax.value_and_grad(
        lambda p, x: loss(batch_first(p, x).swapaxes(0, 1)), argnums=(0, 1)
    )(params, xs["inputs"].swapaxes(0, 1))
    assert_close((value, (of_params, of_inputs.swapaxes(0, 1))), expected, 1e-12)

    vmapped = wrapper(lambda p, x: jax.vmap(lambda x: model(p, {"inputs": x}))(x), time_axis=-2, out_time_axis=1)
    value, _ = jax.value_and_grad(lambda p, x: loss(vmapped(p, x).swapaxes(0, 1)), argnums=(0, 1))(
        params, xs["inputs"].swapaxes(0, 1)
    )
    assert jnp.allclose(value, expected[0], rtol=1e-12)

    def of_leaves(p, xs):
        y = model(p, {"inputs": jnp.moveaxis(xs["time last"]["inputs"], -1, 0)})
        return {"last": xs["scale"] * jnp.moveaxis(y, 0, -1), "first": xs["first"]}

    of_leaves = wrapper(
        of_leaves, time_axis={"time last": -1, "scale": None, "first": 0}, out_time_axis={"last": -1, "first": 0}
    )

    def of_outputs(p, x, scale):
        outputs = of_leaves(p, {"time last": {"inputs": x}, "scale": scale, "first": jnp.arange(12.0)})
        assert outputs["first"].shape == (12,)
        return loss(jnp.moveaxis(outputs["last"], -1, 0))

    args = params, jnp.moveaxis(xs["inputs"], 0, -1), jnp.float64(1.0)
    value, grads = jax.value_and_grad(of_outputs, argnums=(0, 1, 2))(*args)
    assert_close((value, (grads[0], jnp.moveaxis(grads[1], -1, 0))), expected, 1e-12)
    assert jnp.abs(grads[2]) > 0


@pytest.mark.parametrize("segment_length", [4, 5, 12])
def test_loss_functions_and_streams_of_batch_first_data_with_a_label_per_sequence(segment_length):
    cells, params, xs = problem(("custom", "leaky_integrator"))
    model, labels = make_model(cells), jnp.array([0, 1, 2])

    def loss(params, xs):
        logits = model(params, {"inputs": xs["inputs"].swapaxes(0, 1)})
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.broadcast_to(xs["labels"], logits.shape[:2])
        ).mean()

    def time_first(params, xs):
        logits = model(params, xs)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.broadcast_to(labels, logits.shape[:2])
        ).mean()

    data, axes = {"inputs": xs["inputs"].swapaxes(0, 1), "labels": labels}, {"inputs": 1, "labels": None}
    options = {"segment_length": segment_length}
    actual = hj.hypr_value_and_grad(loss, time_axis=axes, **options)(params, data)
    assert_close(actual, hj.hypr_value_and_grad(time_first, **options)(params, xs), 1e-12)
    learner = hj.hypr_stream(loss, time_axis=axes)
    carry = learner.init(params, data)
    (value, _), carry = learner.value_and_grad(params, carry, data)
    assert jnp.allclose(value, time_first(params, xs))
    net = hj.stream(loss, time_axis=axes)
    value, _ = net.apply(params, net.init(params, data), data)
    assert jnp.allclose(value, time_first(params, xs))


# --- what is approximate --------------------------------------------------------------------------


def test_credit_lost_at_segment_borders_falls_like_one_over_the_segment_length():
    """With the readout inside, the last τ steps of each segment lose theirs: the error falls like τ / λ, not faster."""
    _, params = make_stack(("lif", "leaky_integrator"), 3, (8, 4))
    cells = [hj.lif(tau=5.0), hj.leaky_integrator(tau=10.0)]
    params[0]["neuron"]["tau"] = jnp.full(8, 5.0)
    params[1]["neuron"]["tau"] = jnp.full(4, 10.0)
    xs = make_data(1600, (2,), 3, 4)
    model = make_model(cells)
    loss = lambda y: (y * xs["weights"].mean((0, 1))).mean()  # noqa: E731

    def of_hidden(segment_length):
        wrapped = hj.hypr(model, segment_length=segment_length)
        return jax.jit(jax.grad(lambda p: loss(wrapped(p, xs))))(params)[0]["w_in"]

    whole, errors = of_hidden(1600), []
    for segment_length in (50, 100, 200, 400, 800):
        part = of_hidden(segment_length)
        errors.append(float(jnp.linalg.norm(part - whole) / jnp.linalg.norm(whole)))
    for longer, shorter in zip(errors[1:], errors, strict=False):
        assert 0.3 < longer / shorter < 0.75  # half, when the segment is twice as long
    assert 0.5 * 10 / 50 < errors[0] < 2 * 10 / 50


def test_hypr_grad_with_one_step_per_segment_is_not_published_eprop():
    """The learning signal through a leaky readout's memory is cut; with the readout outside it is not."""
    cells, params, xs = problem(("custom", "leaky_integrator"), steps=60)
    params[1]["neuron"]["tau"] = jnp.full(4, 20.0)
    model = make_model(cells)
    loss = lambda y: loss_of_outputs(y, xs["weights"].mean(0))  # noqa: E731
    published = oracle.bptt(cells, loss, params, xs["inputs"], cut=True)[0]["w_in"]
    inside = jax.grad(lambda p: loss(hj.hypr(model, segment_length=1)(p, xs)))(params)[0]["w_in"]
    assert jnp.linalg.norm(inside) < 0.3 * jnp.linalg.norm(published)


# --- other libraries ------------------------------------------------------------------------------


class Layer(eqx.Module):
    """A layer whose activation is a leaf of the module, as users write them."""

    params: dict
    cell: hj.Cell = eqx.field(static=True)
    activation: object = jax.nn.relu
    scale: float = 2.0
    repeats: int = 2
    skip: bool = False

    def __call__(self, x):
        y = self.scale * hj.unroll(self.cell, self.params, x)
        for _ in range(self.repeats):
            y = self.activation(y)
        return x + y if self.skip else y


class Stack(eqx.Module):
    layers: list

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("wrap", WRAPS)
def test_an_equinox_module(wrap):
    cells, params, xs = problem(("brf", "leaky_integrator"))
    del params[1]["w_rec"]  # a readout
    module = Stack([Layer(p, cell) for p, cell in zip(params, cells, strict=True)])
    inputs = xs["inputs"].swapaxes(0, 1)
    batched = lambda module, x: jax.vmap(module)(x)  # noqa: E731
    length = 12
    model = WRAPS[wrap](batched, segment_length=length, time_axis=1)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(module, x, model):
        return jnp.square(model(module, x)[:, -1]).mean()

    value, grads = loss(module, inputs, model)
    exact_value, exact = loss(module, inputs, batched)
    assert jnp.allclose(value, exact_value, rtol=1e-12)
    assert_close(grads.layers[1].params, exact.layers[1].params)
    if wrap == "bptt":
        assert_close(grads.layers[0].params, exact.layers[0].params)
    assert grads.layers[0].activation is None


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_flax_module(wrap):
    from hyprjax.nnx import Readout, Recurrent

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.hidden = Recurrent(hj.alif(), 3, 8, rngs=rngs)
            self.norm = nnx.LayerNorm(8, rngs=rngs)
            self.readout = Readout(8, 4, rngs=rngs)

        def __call__(self, x):
            return self.readout(self.norm(self.hidden(x)))

    network = Network(nnx.Rngs(0))
    x = make_data(20, (3,), 3, 4)["inputs"].astype(jnp.float32)
    model = WRAPS[wrap](lambda network, x: network(x), segment_length=20)
    loss = lambda network, f: jnp.square(f(network, x)[-1]).mean()  # noqa: E731
    value, grads = nnx.jit(nnx.value_and_grad(partial(loss, f=model)))(network)
    exact_value, exact = nnx.value_and_grad(partial(loss, f=lambda network, x: network(x)))(network)
    assert np.isclose(value, exact_value)
    names = ("hidden", "norm", "readout") if wrap == "bptt" else ("norm", "readout")
    for name in names:
        chex.assert_trees_all_close(grads[name], exact[name], rtol=1e-5, atol=1e-5)
    assert any(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["hidden"]))


def test_what_a_loss_closes_over_is_a_constant_even_if_it_is_an_argument_too():
    """An anchor or a target, as under `jax.grad`: neither cut along time nor differentiated."""
    params, xs = hj.init_layer(jax.random.key(0), hj.lif(), 3, 4, recurrent=True), jnp.ones((60, 2, 3))
    plain = lambda p, x: hj.unroll(hj.lif(), p, x).mean()  # noqa: E731
    anchored = lambda p, x: plain(p, x) + (p["w_in"] * params["w_in"]).sum() + xs.mean()  # noqa: E731
    value, grads = hj.hypr_value_and_grad(anchored, segment_length=20)(params, xs)
    of_plain, plain_grads = hj.hypr_value_and_grad(plain, segment_length=20)(params, xs)
    assert jnp.allclose(value, of_plain + jnp.square(params["w_in"]).sum() + 1, rtol=1e-6)
    assert jnp.allclose(grads["w_in"], plain_grads["w_in"] + params["w_in"], rtol=1e-6)
