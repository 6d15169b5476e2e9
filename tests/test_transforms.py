"""The transforms under jit, vmap, low precision, debug flags; streams; compiled memory."""

import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from networks import CELLS, assert_close, loss_of_outputs, make_data, make_loss, make_stack

import hyprjax as hj


@pytest.fixture
def problem():
    cells, params = make_stack(("brf", "leaky_integrator"), 3, (4, 2))
    return params, make_data(11, (3,), 3, 2, resets=True), make_loss(cells)


# --- every transform, with and without jit --------------------------------------------------------

STACK = [CELLS["brf"], CELLS["leaky_integrator"]]
LOSS, STARTS = make_loss(STACK), (0, 4, 8)  # of segments


def make_problem():
    return make_stack(("brf", "leaky_integrator"), 3, (4, 2))[1], make_data(12, (3,), 3, 2, resets=True)


def segment(xs, start):
    return jax.tree.map(lambda x: x[start : start + 4], xs)


def outputs(params, xs):
    for cell, layer in zip(STACK, params, strict=True):
        xs = {**xs, "inputs": hj.unroll(cell, layer, xs["inputs"], resets=xs["resets"])}
    return xs["inputs"]


def by_wrapping(wrapped):
    return lambda params, xs: jax.grad(lambda p: loss_of_outputs(wrapped(p, xs), xs["weights"]))(params)


def by_stream(params, xs):
    learner = hj.hypr_stream(LOSS)
    carry, total = learner.init(params, segment(xs, 0)), jax.tree.map(jnp.zeros_like, params)
    for start in STARTS:
        (_, grads), carry = learner.value_and_grad(params, carry, segment(xs, start))
        total = jax.tree.map(jnp.add, total, grads)
    return total


GRADIENTS = {  # `(params, xs) -> grads`; HYPR's are the same in all ways, `bptt`'s are those of `jax.grad`
    "hypr_grad": hj.hypr_grad(LOSS, segment_length=4),
    "hypr_value_and_grad": lambda params, xs: hj.hypr_value_and_grad(LOSS, segment_length=4)(params, xs)[1],
    "hypr": by_wrapping(hj.hypr(outputs, segment_length=4)),
    "hypr_stream": by_stream,
    "bptt": by_wrapping(hj.bptt(outputs)),
}


class Jit(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_all_transforms_agree(self):
        params, xs = make_problem()
        exact, hypr = jax.grad(LOSS)(params, xs), jax.jit(GRADIENTS["hypr_grad"])(params, xs)
        loss, _ = self.variant(hj.hypr_value_and_grad(LOSS, segment_length=4))(params, xs)
        assert jnp.allclose(loss, LOSS(params, xs), rtol=1e-12)
        for name, gradient in GRADIENTS.items():
            assert_close(self.variant(gradient)(params, xs), exact if name == "bptt" else hypr)


@pytest.mark.parametrize("name", GRADIENTS)
def test_other_values_are_not_traced_again(name):
    params, xs = make_problem()
    chex.clear_trace_counter()
    gradient = jax.jit(chex.assert_max_traces(GRADIENTS[name], n=1))
    first, *others = [gradient(jax.tree.map(lambda p: gain * p, params), xs) for gain in (1.0, 1.5, 2.0)]  # noqa: B023
    for other in others:
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(first, other)


@pytest.mark.parametrize("name", ["hypr_stream", "stream"])
def test_all_segments_of_a_stream_are_traced_once(name):
    """The carry that `init` makes has the types of the ones that follow."""
    params, xs = make_problem()
    stream = hj.hypr_stream(LOSS) if name == "hypr_stream" else hj.stream(outputs)
    step = stream.value_and_grad if name == "hypr_stream" else stream.apply
    chex.clear_trace_counter()
    compiled, carry = jax.jit(chex.assert_max_traces(step, n=1)), stream.init(params, segment(xs, 0))
    for start in STARTS:
        _, carry = compiled(params, carry, segment(xs, start))


@pytest.mark.parametrize("scan", ["sequential", "associative"])
def test_vmap_over_seeds(problem, scan):
    _, xs, loss_fn = problem
    many = [make_stack(("brf", "leaky_integrator"), 3, (4, 2), seed=seed)[1] for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    f = hj.hypr_grad(loss_fn, segment_length=4, scan=scan)
    batched = jax.jit(jax.vmap(f, (0, None)))(stacked, xs)
    for seed, params in enumerate(many):
        assert_close(jax.tree.map(lambda g, seed=seed: g[seed], batched), jax.jit(f)(params, xs))


def test_init_layer_under_vmap_over_keys():
    keys = jax.random.split(jax.random.key(0), 3)
    layers = jax.vmap(lambda key: hj.init_layer(key, CELLS["alif"], 3, 4, recurrent=True))(keys)
    assert layers["w_rec"].shape == (3, 4, 4)
    assert_close(jax.tree.map(lambda p: p[1], layers), hj.init_layer(keys[1], CELLS["alif"], 3, 4, recurrent=True))


def test_arguments_after_xs_reach_every_segment_whole(problem):
    params, xs, loss_fn = problem
    scaled = lambda params, xs, scale, mode: loss_fn(params, xs) * scale[0] * (2.0 if mode == "double" else 1.0)  # noqa: E731
    f = hj.hypr_grad(scaled, segment_length=4)
    grads = jax.jit(lambda params, xs, scale: f(params, xs, scale, "double"))(params, xs, jnp.array([3.0]))
    assert_close(grads, jax.tree.map(lambda g: 6 * g, jax.jit(hj.hypr_grad(loss_fn, segment_length=4))(params, xs)))


def test_aux_is_stacked_over_segments(problem):
    params, xs, loss_fn = problem
    with_aux = lambda params, xs: (loss_fn(params, xs), {"sum": xs["inputs"].sum(), "n": len(xs["inputs"])})  # noqa: E731
    (loss, aux), grads = jax.jit(hj.hypr_value_and_grad(with_aux, segment_length=4, has_aux=True))(params, xs)
    plain_loss, plain_grads = jax.jit(hj.hypr_value_and_grad(loss_fn, segment_length=4))(params, xs)
    assert loss == plain_loss
    assert_close(grads, plain_grads)
    assert aux["n"].tolist() == [4, 4, 3]
    assert jnp.allclose(aux["sum"].sum(), xs["inputs"].sum())
    grads, aux = jax.jit(hj.hypr_grad(with_aux, segment_length=11, has_aux=True))(params, xs)
    assert aux["n"].tolist() == [11]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scan", ["sequential", "associative"])
def test_low_precision_stays_close_to_float64(dtype, scan):
    """A smooth layer, because a spike that flips is no rounding error."""
    jax.config.update("jax_enable_x64", True)
    cells, params = make_stack(("leaky_integrator", "leaky_integrator"), 3, (4, 2))
    xs = make_data(11, (3,), 3, 2)
    f = jax.jit(hj.hypr_grad(make_loss(cells), segment_length=4, scan=scan))
    low = f(*jax.tree.map(lambda a: a.astype(dtype), (params, xs)))
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(low))
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    assert_close(jax.tree.map(lambda a: a.astype(float), low), f(params, xs), tolerance)


def test_bfloat16_inputs_with_float32_parameters_give_float32_gradients():
    cells, params = make_stack(("brf",), 3, (4,))
    params = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    xs = jax.tree.map(lambda a: a.astype(jnp.bfloat16), make_data(11, (3,), 3, 4))
    grads = jax.jit(hj.hypr_grad(make_loss(cells), segment_length=4))(params, xs)
    chex.assert_tree_all_finite(grads)
    chex.assert_type(jax.tree.leaves(grads), jnp.float32)


@pytest.mark.parametrize("name", CELLS)
def test_debug_nans(name):
    cells, params = make_stack((name, "leaky_integrator"), 3, (4, 2))
    xs = make_data(11, (3,), 3, 2, resets=True)
    with jax.debug_nans(True):
        grads = jax.jit(hj.hypr_grad(make_loss(cells), segment_length=4))(params, xs)
    chex.assert_tree_all_finite(grads)


def test_the_loss_need_not_be_finite_at_rest():
    """`init` asks a loss only for its carry, so a loss that would divide by zero on silence is fine."""
    cells, params = make_stack(("leaky_integrator",), 3, (2,))

    def loss_fn(params, xs):
        y = hj.unroll(cells[0], params[0], xs)
        return (y / jnp.sqrt(jnp.square(y).sum())).sum()

    with jax.debug_nans(True):
        grads = hj.hypr_grad(loss_fn, segment_length=4, check=False)(params, make_data(11, (3,), 3, 2)["inputs"])
    chex.assert_tree_all_finite(grads)


def test_a_layer_beside_the_loss_keeps_its_traces():
    """A layer whose output does not reach the loss in this segment may well reach it in the next."""
    cells, params = make_stack(("custom",), 3, (4,))
    xs = make_data(8, (3,), 3, 4)
    silent = hj.hypr_stream(lambda params, xs: make_loss(cells)(params, xs) * 0 + params[0]["bias"].sum())
    detached = hj.hypr_stream(lambda params, xs: jax.lax.stop_gradient(make_loss(cells)(params, xs)))
    learner = hj.hypr_stream(make_loss(cells))
    carries = [h.value_and_grad(params, h.init(params, xs), xs)[1] for h in (silent, detached, learner)]
    assert_close(carries[0][0].traces.synapses, carries[2][0].traces.synapses)
    assert_close(carries[1][0].traces.synapses, carries[2][0].traces.synapses)


def test_stream_of_segments_equals_hypr_value_and_grad(problem):
    params, xs, loss_fn = problem
    learner = hj.hypr_stream(loss_fn)
    carry, total, losses = learner.init(params, xs), None, 0.0
    value_and_grad = jax.jit(learner.value_and_grad)
    for start in range(0, 11, 4):
        segment = jax.tree.map(lambda x, start=start: x[start : start + 4], xs)
        (loss, grads), carry = value_and_grad(params, carry, segment)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        losses += loss
    loss, grads = hj.hypr_value_and_grad(loss_fn, segment_length=4, reduction="sum")(params, xs)
    assert jnp.allclose(losses, loss, rtol=1e-12)
    assert_close(total, grads)


@pytest.mark.parametrize("name", CELLS)
def test_stream_continues_where_it_stopped(name):
    cells, params = make_stack((name, "leaky_integrator"), 3, (4, 2))
    xs = make_data(10, (2,), 3, 2, resets=True)

    def net(params, xs):
        spikes = hj.unroll(cells[0], params[0], xs["inputs"], resets=xs["resets"])
        return spikes, hj.unroll(cells[1], params[1], spikes)

    whole = net(params, xs)
    stream = hj.stream(net)
    apply = jax.jit(stream.apply)
    for cuts in ([1] * 10, [3, 7], [9, 1]):
        carry, parts, start = stream.init(params, xs), [], 0
        for length in cuts:
            part, carry = apply(params, carry, jax.tree.map(lambda x, a=start, n=length: x[a : a + n], xs))
            parts.append(part)
            start += length
        spikes, y = (jnp.concatenate(leaves) for leaves in zip(*parts, strict=True))
        assert jnp.array_equal(spikes > 0, whole[0] > 0)
        assert jnp.allclose(spikes, whole[0], atol=1e-12)
        assert jnp.allclose(y, whole[1], atol=1e-12)


def test_gradient_of_a_stream_is_truncated_bptt():
    cells, params = make_stack(("custom",), 3, (4,))
    xs = make_data(10, (), 3, 4)
    stream = hj.stream(make_loss(cells))
    first, second = (jax.tree.map(lambda x, s=s: x[s], xs) for s in (slice(0, 6), slice(6, 10)))
    _, carry = stream.apply(params, stream.init(params, first), first)
    truncated = jax.grad(lambda params: stream.apply(params, carry, second)[0])(params)

    def loss_of_loop(params):
        state, z, loss = carry[0].state, carry[0].output, 0.0
        for x, weights in zip(second["inputs"], second["weights"], strict=True):
            state, z = oracle.step_layer(cells[0], params[0], state, z, x)
            loss = loss + (jnp.sin(z) * weights + 0.1 * z**2).sum()
        return loss

    assert_close(truncated, jax.grad(loss_of_loop)(params))


def test_two_threads_do_not_see_each_others_frames():
    cells, params = make_stack(("custom", "leaky_integrator"), 3, (4, 2))
    xs = make_data(9, (2,), 3, 2)
    top = lambda params, xs: make_loss(cells)(params, xs)  # noqa: E731
    bottom = lambda params, xs: (hj.unroll(cells[0], params[0], xs["inputs"]) ** 2).sum()  # noqa: E731
    expected = [jax.jit(hj.hypr_grad(loss, segment_length=4))(params, xs) for loss in (top, bottom)]
    results, barrier = {}, threading.Barrier(2)

    def work(index, loss):
        barrier.wait()
        results[index] = jax.jit(hj.hypr_grad(loss, segment_length=4))(params, xs)

    threads = [threading.Thread(target=work, args=item) for item in enumerate((top, bottom))]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert_close(results[0], expected[0])
    assert_close(results[1], expected[1])


def test_numpy_parameters_and_inputs_are_accepted(problem):
    params, xs, loss_fn = problem
    as_numpy = jax.tree.map(np.asarray, (params, xs))
    assert_close(hj.hypr_grad(loss_fn, segment_length=20)(*as_numpy), hj.hypr_grad(loss_fn)(params, xs))


def test_masks_on_weights_are_plain_jax():
    cells, params = make_stack(("brf",), 3, (4,))
    xs = make_data(9, (2,), 3, 4)
    mask = 1.0 - jnp.eye(4)
    masked = lambda params, xs: make_loss(cells)([{**params[0], "w_rec": params[0]["w_rec"] * mask}], xs)  # noqa: E731
    grads = jax.jit(hj.hypr_grad(masked, segment_length=4))(params, xs)[0]["w_rec"]
    assert (jnp.diag(grads) == 0).all()
    assert jnp.abs(grads).max() > 0


@pytest.mark.parametrize("scan", ["sequential", "associative"])
def test_a_reset_ends_what_a_broken_sensor_did(scan):
    """A NaN stays in its own batch element, and leaves state, traces and gradient with the next reset."""
    cells, params = make_stack(("custom", "leaky_integrator"), 3, (4, 2))
    xs = make_data(12, (3,), 3, 2)
    broken = {**xs, "inputs": xs["inputs"].at[2, 1].set(jnp.nan), "resets": jnp.zeros((12, 3), bool).at[4, 1].set(True)}
    healthy = {**broken, "inputs": xs["inputs"]}
    learner = hj.hypr_stream(make_loss(cells), scan=scan)
    cut = lambda xs, start: jax.tree.map(lambda x: x[start : start + 4], xs)  # noqa: E731
    carries, grads = {}, {}
    for name, sequence in (("broken", broken), ("healthy", healthy)):
        carry = learner.init(params, cut(sequence, 0))
        _, carry = learner.value_and_grad(params, carry, cut(sequence, 0))
        others = jax.tree.map(lambda leaf: leaf[jnp.array([0, 2])], carry)
        (_, grads[name]), carry = learner.value_and_grad(params, carry, cut(sequence, 4))
        carries[name] = others, carry
    chex.assert_tree_all_finite(carries["broken"])
    assert_close(carries["broken"], carries["healthy"])
    assert_close(grads["broken"], grads["healthy"])


@pytest.mark.parametrize(("layer_dtype", "trace_dtype"), [("bfloat16", jnp.float32), ("float32", jnp.float64)])
@pytest.mark.parametrize("credit", ["none", "segment"])
@pytest.mark.parametrize("traces", ["full", "factored"])
def test_wide_traces_leave_gradients_in_the_dtype_of_the_parameters(layer_dtype, trace_dtype, credit, traces):
    cell, n = hj.alif(), 5
    layer = hj.init_layer(jax.random.key(0), cell, 3, n, recurrent=True, dtype=jnp.dtype(layer_dtype))
    xs = jnp.ones((8, 2, 3), layer_dtype)

    def loss_fn(params, xs):
        masked = {**params, "w_rec": params["w_rec"] * (1 - jnp.eye(n, dtype=layer_dtype))}
        return hj.unroll(cell, masked, xs).mean()

    options = {"trace_dtype": trace_dtype, "recurrent_credit": credit, "traces": traces}
    learner = hj.hypr_stream(loss_fn, **options)
    carry = learner.init(layer, xs[:4])
    (_, grads), carry = learner.value_and_grad(layer, carry, xs[:4])
    (_, grads), carry = learner.value_and_grad(layer, carry, xs[4:])
    model = lambda p, xs: hj.unroll(cell, {**p, "w_rec": jnp.sin(p["w_rec"])}, xs)  # noqa: E731
    wrapped = hj.hypr(model, segment_length=4, **options)
    for tree in (
        grads,
        hj.hypr_grad(loss_fn, segment_length=4, **options)(layer, xs),
        jax.grad(lambda p: wrapped(p, xs).sum())(layer),
    ):
        chex.assert_trees_all_equal_shapes_and_dtypes(tree, layer)


def test_traces_of_float64_are_not_taken_for_the_default():
    """NumPy's float64 dtype equals None, and so would the options of two learners."""
    layer = hj.init_layer(jax.random.key(0), hj.lif(), 3, 4, dtype=jnp.float32)
    xs = jnp.ones((4, 2, 3), jnp.float32)
    of = lambda dtype: hj.hypr_stream(lambda p, x: hj.unroll(hj.lif(), p, x).mean(), trace_dtype=dtype)  # noqa: E731
    for wide, dtype in ((jnp.float64, "float64"), (None, "float32"), (jnp.float64, "float64")):
        learner = of(wide)
        (_, _), carry = learner.value_and_grad(layer, learner.init(layer, xs), xs)
        assert {trace.dtype.name for trace in carry[0].traces.synapses} == {dtype}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_strict_promotion_of_dtypes(dtype):
    layer = hj.init_layer(jax.random.key(0), hj.brf(), 3, 4, recurrent=True, dtype=dtype)
    xs, model = jnp.ones((8, 2, 3), dtype), lambda p, xs: hj.unroll(hj.brf(), p, xs)
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(dtype == "float64"):
        for wrapped in (hj.hypr(model, segment_length=4), hj.bptt(model, segment_length=4)):
            chex.assert_tree_all_finite(jax.grad(lambda p, f=wrapped: f(p, xs).mean())(layer))
        chex.assert_tree_all_finite(hj.hypr_grad(lambda p, xs: model(p, xs).mean(), segment_length=4)(layer, xs))


@pytest.mark.parametrize("wrap", [hj.hypr, hj.bptt])
def test_an_empty_batch(wrap, problem):
    params, xs, _ = problem
    nobody = jax.tree.map(lambda x: x[:, :0], xs)
    wrapped = wrap(outputs, segment_length=4)
    chex.assert_trees_all_equal(wrapped(params, nobody), outputs(params, nobody))
    grads = by_wrapping(wrapped)(params, nobody)
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, params))


@pytest.mark.parametrize("wrap", [hj.hypr, hj.bptt])
def test_forward_mode_is_refused(wrap, problem):
    params, xs, _ = problem
    with pytest.raises(TypeError, match=f"{wrap.__name__}: reverse mode only .* model without the transform"):
        jax.jvp(lambda p: wrap(outputs)(p, xs), (params,), (params,))
