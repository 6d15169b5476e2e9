"""A function that hides its `unroll`s under transformations of JAX gives what the flat one gives."""

from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import CELLS, assert_close, loss_of_outputs, make_data, make_stack

import hyprjax as hj

T, N = 12, 4
HIDDEN, READOUT = CELLS["brf"], CELLS["leaky_integrator"]


def flat(params, xs):
    """Three layers, the first two of the same size, with something between them and resets in the middle."""
    signal = hj.unroll(HIDDEN, params[0], xs["inputs"])
    signal = hj.unroll(HIDDEN, params[1], jnp.tanh(2 * signal), resets=xs["resets"])
    return hj.unroll(READOUT, params[2], signal)


@cache
def made():
    _, params = make_stack(("brf", "brf", "leaky_integrator"), N, (N, N, 2))
    return params, make_data(T, (3,), N, 2, resets=True)


@pytest.fixture
def problem():
    return made()


def batched(f, in_axes, out_axes=1):
    """`f` of single sequences as a vmap over the batch."""
    return jax.vmap(f, in_axes=(None, in_axes), out_axes=out_axes)


def over_layers(params, xs):
    """The first two layers as the body of a `lax.scan`; both get the resets, so the flat version differs."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params[:2])
    layer = lambda signal, layer: (hj.unroll(HIDDEN, layer, jnp.tanh(2 * signal), resets=xs["resets"]), None)  # noqa: E731
    return hj.unroll(READOUT, params[2], jax.lax.scan(layer, xs["inputs"], stacked)[0])


def in_a_loop(params, xs):
    signal = xs["inputs"]
    for layer in params[:2]:
        signal = hj.unroll(HIDDEN, layer, jnp.tanh(2 * signal), resets=xs["resets"])
    return hj.unroll(READOUT, params[2], signal)


def with_fori_loop(params, xs):
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params[:2])
    layer = lambda i: jax.tree.map(lambda leaf: leaf[i], stacked)  # noqa: E731
    step = lambda i, signal: hj.unroll(HIDDEN, layer(i), jnp.tanh(2 * signal), resets=xs["resets"])  # noqa: E731
    return hj.unroll(READOUT, params[2], jax.lax.fori_loop(0, 2, step, xs["inputs"]))


def ensemble_in_a_loop(params, xs):
    """The mean of two networks that differ in their parameters and share their data."""
    other = jax.tree.map(lambda leaf: 1.1 * leaf, params)
    return (flat(params, xs) + flat(other, xs)) / 2


def ensemble(params, xs):
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), params)
    return jax.vmap(flat, in_axes=(0, None))(both, xs).mean(0)


def ensemble_over_single_sequences(params, xs):
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), params)
    return jax.vmap(lambda p: batched(flat, 1)(p, xs))(both).mean(0)


def single_sequences_over_an_ensemble(params, xs):
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf], axis=-1), params)
    of_one = lambda params, xs: jax.vmap(flat, in_axes=(-1, None))(params, xs).mean(0)  # noqa: E731
    return jax.vmap(of_one, in_axes=(None, 1), out_axes=1)(both, xs)


def ensemble_of_ensembles(params, xs):
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, 1.1 * leaf]), params)
    readouts = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf], axis=1), both[2])
    of_readouts = lambda p, xs: jax.vmap(lambda r: flat([*p[:2], r], xs))(p[2]).mean(0)  # noqa: E731
    return jax.vmap(of_readouts, in_axes=(0, None))([*both[:2], readouts], xs).mean(0)


def biases_apart(params, xs):
    """An ensemble in which only one leaf of one layer differs."""
    biases = jnp.stack([params[1]["bias"], 1.5 * params[1]["bias"]])
    return jax.vmap(lambda b: flat([params[0], {**params[1], "bias": b}, params[2]], xs))(biases).mean(0)


def biases_apart_in_a_loop(params, xs):
    return (flat(params, xs) + flat([params[0], {**params[1], "bias": 1.5 * params[1]["bias"]}, params[2]], xs)) / 2


def batch_first(params, xs):
    xs = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), xs)
    return jax.vmap(flat, in_axes=(None, 0), out_axes=1)(params, xs)


def nested_batches(params, xs):
    fold = lambda leaf: leaf.reshape(T_of(xs), 3, 1, *leaf.shape[2:])  # noqa: E731
    out = jax.vmap(jax.vmap(flat, (None, 1), 1), (None, 1), 1)(params, jax.tree.map(fold, xs))
    return out.reshape(T_of(xs), 3, 2)


def T_of(xs):
    return len(xs["inputs"])


def resets_shared(params, xs):
    """Inputs are batched, resets are not."""
    return jax.vmap(lambda x: flat(params, {"inputs": x, "resets": xs["resets"][:, 0]}), 1, 1)(xs["inputs"])


def resets_shared_in_a_loop(params, xs):
    resets = jnp.broadcast_to(xs["resets"][:, :1], xs["resets"].shape)
    return flat(params, {"inputs": xs["inputs"], "resets": resets})


def inputs_shared(params, xs):
    """Resets are batched, inputs are not."""
    return jax.vmap(lambda r: flat(params, {"inputs": xs["inputs"][:, 0], "resets": r}), 1, 1)(xs["resets"])


def inputs_shared_in_a_loop(params, xs):
    inputs = jnp.broadcast_to(xs["inputs"][:, :1], xs["inputs"].shape)
    return flat(params, {"inputs": inputs, "resets": xs["resets"]})


def one_after_the_other(params, xs):
    xs = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), xs)
    return jax.lax.map(lambda one: flat(params, one), xs).swapaxes(0, 1)


def jit_around_each_layer(params, xs):
    layer = jax.jit(hj.unroll, static_argnums=0)
    signal = layer(HIDDEN, params[0], xs["inputs"])
    signal = layer(HIDDEN, params[1], jnp.tanh(2 * signal), resets=xs["resets"])
    return layer(READOUT, params[2], signal)


def checkpointed_layers(params, xs):
    layer = jax.checkpoint(lambda params, x, resets: hj.unroll(HIDDEN, params, x, resets=resets))
    signal = layer(params[1], jnp.tanh(2 * hj.unroll(HIDDEN, params[0], xs["inputs"])), xs["resets"])
    return hj.unroll(READOUT, params[2], signal)


def checkpointed_scan(params, xs):
    return jax.checkpoint(jax.jit(over_layers), policy=jax.checkpoint_policies.dots_saveable)(params, xs)


def vmap_of_scan(params, xs):
    return jax.jit(batched(over_layers, 1))(params, xs)


def named(params, xs):
    with jax.named_scope("model"):
        return jax.named_call(flat, name="network")(params, xs)


class Module(eqx.Module):
    layers: list

    def __call__(self, xs):
        return flat(self.layers, xs)


def equinox_module(params, xs):
    return eqx.filter_vmap(Module(params), in_axes=1, out_axes=1)(xs)


def equinox_jit(params, xs):
    return eqx.filter_jit(lambda model, xs: jax.vmap(model, 1, 1)(xs))(Module(params), xs)


def equinox_checkpoint(params, xs):
    return eqx.filter_checkpoint(Module(params))(xs)


def flax_jit(params, xs):
    return nnx.jit(flat)(params, xs)


def flax_remat_and_vmap(params, xs):
    return nnx.vmap(nnx.remat(flat), in_axes=(None, 1), out_axes=1)(params, xs)


NESTED = {
    "jit": (jax.jit(flat), flat),
    "jit of jit": (jax.jit(lambda p, x: jax.jit(flat)(p, x)), flat),
    "jit around each layer": (jit_around_each_layer, flat),
    "named_call": (named, flat),
    "checkpoint": (jax.checkpoint(flat), flat),
    "checkpointed layers": (checkpointed_layers, flat),
    "vmap": (batched(flat, 1), flat),
    "vmap, batch first": (batch_first, flat),
    "vmap of vmap": (nested_batches, flat),
    "vmap, shared resets": (resets_shared, resets_shared_in_a_loop),
    "vmap, shared inputs": (inputs_shared, inputs_shared_in_a_loop),
    "vmap of jit of checkpoint": (batched(jax.jit(jax.checkpoint(flat)), 1), flat),
    "ensemble": (ensemble, ensemble_in_a_loop),
    "ensemble of vmaps": (ensemble_over_single_sequences, ensemble_in_a_loop),
    "vmap of ensembles": (single_sequences_over_an_ensemble, ensemble_in_a_loop),
    "ensemble of ensembles": (ensemble_of_ensembles, ensemble_in_a_loop),
    "ensemble of biases": (biases_apart, biases_apart_in_a_loop),
    "scan over layers": (over_layers, in_a_loop),
    "fori_loop over layers": (with_fori_loop, in_a_loop),
    "checkpoint of jit of scan": (checkpointed_scan, in_a_loop),
    "jit of vmap of scan": (vmap_of_scan, in_a_loop),
    "map over sequences": (one_after_the_other, flat),
    "eqx.filter_vmap of a module": (equinox_module, flat),
    "eqx.filter_jit of vmap": (equinox_jit, flat),
    "eqx.filter_checkpoint": (equinox_checkpoint, flat),
    "nnx.jit": (flax_jit, flat),
    "nnx.vmap of nnx.remat": (flax_remat_and_vmap, flat),
}


def summed(model):
    return lambda params, xs: loss_of_outputs(model(params, xs), xs["weights"])


def summed_gradient(model, credit, segment_length):
    options = {"segment_length": segment_length, "recurrent_credit": credit, "reduction": "sum"}
    return jax.jit(hj.hypr_value_and_grad(summed(model), **options))(*made())


def whole_gradient(model, wrap, segment_length):
    """Of a loss that is nonlinear in the outputs of the whole sequence."""
    wrapped = wrap(model, segment_length=segment_length)
    return jax.jit(jax.value_and_grad(lambda params, xs: jnp.sin(wrapped(params, xs).mean(0)).sum()))(*made())


of_flat = {whole_gradient: cache(whole_gradient), summed_gradient: cache(summed_gradient)}


CASES = [(name, summed_gradient, "none", 5) for name in NESTED]
FEWER = [
    *("jit around each layer", "checkpointed layers", "vmap of vmap", "vmap, shared resets", "ensemble of vmaps"),
    *("vmap of ensembles", "scan over layers", "jit of vmap of scan", "map over sequences", "nnx.vmap of nnx.remat"),
]
CASES += [(name, summed_gradient, "segment", 4) for name in FEWER]
CASES += [(name, whole_gradient, wrap, 4) for name in FEWER for wrap in (hj.hypr, hj.bptt)]


@pytest.mark.parametrize(("name", "gradient", "how", "segment_length"), CASES)
def test_a_nested_function_has_value_and_gradient_of_the_flat_one(name, gradient, how, segment_length):
    """With segments that divide the sequence, and with others."""
    nested, plain = NESTED[name]
    value, grads = gradient(nested, how, segment_length)
    expected = of_flat[gradient](plain, how, segment_length)
    loss = summed(plain)(*made()) if gradient is summed_gradient else jnp.sin(plain(*made()).mean(0)).sum()
    assert jnp.allclose(value, loss, rtol=1e-12)
    assert_close(grads, expected[1], 1e-12)


@pytest.mark.parametrize("name", FEWER)
def test_a_stream_of_a_nested_function(problem, name):
    nested, plain = NESTED[name]
    params, xs = problem
    net = hj.stream(nested)
    apply, parts, carry = jax.jit(net.apply), [], net.init(params, xs)
    for start, stop in ((0, 4), (4, 11), (11, 12)):
        part, carry = apply(params, carry, jax.tree.map(lambda leaf, a=start, b=stop: leaf[a:b], xs))
        parts.append(part)
    assert_close(jnp.concatenate(parts), plain(params, xs), 1e-12)


def test_the_carry_is_flat_whatever_the_nesting(problem):
    params, xs = problem
    carries = {name: hj.stream(NESTED[name][0]).init(params, xs) for name in ("jit", "checkpoint", "vmap", "nnx.jit")}
    reference = hj.stream(flat).init(params, xs)
    for carry in carries.values():
        assert jax.tree.map(jnp.shape, carry) == jax.tree.map(jnp.shape, reference)
    stacked, readout = hj.stream(over_layers).init(params, xs)
    assert stacked.output.shape == (2, 3, N)
    assert readout.output.shape == (3, 2)


def compiled(model, params, xs):
    f = hj.hypr_value_and_grad(summed(model), segment_length=50, reduction="sum")
    return jax.jit(f).lower(params, xs).compile()


def test_a_vmapped_batch_costs_what_a_batch_axis_costs():
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        _, params = make_stack(("brf", "brf", "leaky_integrator"), 20, (20, 20, 5))
        xs = make_data(200, (16,), 20, 5, resets=True)
        axis, vmapped = compiled(flat, params, xs), compiled(batched(flat, 1), params, xs)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    assert vmapped.cost_analysis()["flops"] == pytest.approx(axis.cost_analysis()["flops"], rel=0.05)
    sizes = [one.memory_analysis().temp_size_in_bytes for one in (vmapped, axis)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


# --- calls outside of jit -------------------------------------------------------------------------


@pytest.fixture
def compilations():
    """Counts XLA compilations."""
    counted = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counted
    jax.monitoring.clear_event_listeners()


def calls():
    """Each way to call a transform outside of jit, anew at every call."""
    loss = summed(lambda p, x: jax.nn.relu(flat(p, x)))
    fresh = lambda: lambda p, x: loss(p, x)  # noqa: E731  a new function every time, as a lambda in a loop is
    sequence = lambda wrap: jax.grad(lambda p, x: jnp.square(wrap(lambda p, x: flat(p, x))(p, x)).mean())  # noqa: E731
    yield "hypr_grad", lambda p, x: hj.hypr_grad(fresh(), segment_length=4)(p, x)
    yield "hypr_stream", lambda p, x: (s := hj.hypr_stream(fresh())).value_and_grad(p, s.init(p, x), x)
    yield "stream", lambda p, x: (s := hj.stream(fresh())).apply(p, s.init(p, x), x)
    yield "hypr", sequence(lambda f: hj.hypr(f, segment_length=4))
    yield "bptt", sequence(lambda f: hj.bptt(f, segment_length=4))
    yield "unroll", lambda p, x: hj.unroll(HIDDEN, p[0], x["inputs"], resets=x["resets"])
    yield "gradient of unroll", jax.grad(lambda p, x: hj.unroll(HIDDEN, p[0], x["inputs"]).sum())


@pytest.mark.parametrize(("name", "call"), list(calls()), ids=lambda value: value if isinstance(value, str) else "")
def test_calls_outside_of_jit_compile_once(problem, compilations, name, call):
    jax.clear_caches()
    first = jax.block_until_ready(call(*problem))
    assert compilations
    compilations.clear()
    for _ in range(3):
        again = jax.block_until_ready(call(*problem))
    assert not compilations
    assert_close(again, first, 0)


def test_calls_outside_of_jit_see_what_the_function_closes_over(problem):
    params, xs = problem
    settings = {"scale": 2.0, "shift": np.array([1.0, 2.0])}
    loss = lambda params, xs: (settings["scale"] * flat(params, xs) + settings["shift"]).sum()  # noqa: E731
    f, scaled = hj.hypr_value_and_grad(loss, segment_length=12), hj.hypr_grad(lambda p, x: flat(p, x).sum())
    for change in ({}, {"scale": 3.0}, {"shift": np.array([5.0, 6.0])}):
        settings.update(change)
        value, grads = f(params, xs)
        assert jnp.allclose(value, loss(params, xs), rtol=1e-12)
        assert_close(grads, jax.tree.map(lambda g, scale=settings["scale"]: scale * g, scaled(params, xs)))


def test_arguments_by_keyword_and_numpy_integers(problem):
    params, xs = problem

    def loss(params, xs, *, scale, power=1):
        return scale * summed(flat)(params, xs) ** power

    f = hj.hypr_value_and_grad(loss, segment_length=np.int64(12), trace_rank=np.int32(1))
    value, grads = f(params, xs, scale=jnp.float64(2.0), power=2)
    expected = jax.value_and_grad(lambda p: 2 * summed(hj.hypr(flat, segment_length=12))(p, xs) ** 2)(params)
    assert_close((value, grads), expected, 1e-11)
    net, learner = hj.stream(loss), hj.hypr_stream(loss)
    value, _ = net.apply(params, net.init(params, xs, scale=2.0), xs, scale=2.0)
    assert jnp.allclose(value, 2 * summed(flat)(params, xs))
    (value, _), _ = learner.value_and_grad(params, learner.init(params, xs, scale=2.0), xs, scale=2.0)
    assert jnp.allclose(value, 2 * summed(flat)(params, xs))
    layer = hj.init_layer(jax.random.key(0), HIDDEN, np.int64(3), np.int32(4), recurrent=True)
    assert layer["w_rec"].shape == (4, 4)


def test_no_tracer_leaks(problem):
    params, xs = problem
    with jax.checking_leaks():
        jax.jit(hj.hypr_grad(summed(over_layers), segment_length=5))(params, xs)
        jax.jit(jax.grad(lambda p: hj.hypr(biases_apart, segment_length=5)(p, xs).sum()))(params)
        jax.jit(jax.grad(lambda p: hj.bptt(batch_first, segment_length=5)(p, xs).sum()))(params)
