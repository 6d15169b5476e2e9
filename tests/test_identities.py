"""The identities HYPR must meet, in float64 against loops and dense RTRL."""

import jax
import jax.numpy as jnp
import oracle
import pytest
from networks import CELLS, assert_close, loss_of_outputs, make_data, make_loss, make_model, make_stack

import hyprjax as hj
from hyprjax import _recursion, _segment

SCANS = ("sequential", "associative")
LENGTHS = {
    "sequential": (1, 5),
    "associative": (4, 8),
}  # of segments; those of the associative scan are cut into chunks
VARIANTS = [("sequential", True), ("associative", False)]
STACKS = [("brf",), ("custom", "leaky_integrator"), ("se_adlif", "alif"), ("alif", "custom", "leaky_integrator")]


def problem(names, steps=12, batch_shape=(3,), sizes=(4, 3, 2), n_in=3, recurrent=True, bias=True, resets=False):
    sizes = sizes[: len(names)]
    cells, params = make_stack(names, n_in, sizes, recurrent=recurrent, bias=bias)
    xs = make_data(steps, batch_shape, n_in, sizes[-1], resets=resets)
    return cells, params, xs


def reference(cells, params, xs, cut):
    loss = lambda outputs: loss_of_outputs(outputs, xs["weights"])  # noqa: E731
    return oracle.bptt(cells, loss, params, xs["inputs"], xs.get("resets"), cut)


def gradient(cells, params, xs, **options):
    return jax.jit(hj.hypr_grad(make_loss(cells), reduction="sum", **options))(params, xs)


NAMES = [(name,) for name in CELLS] + STACKS[1:]


@pytest.mark.parametrize(("names", "scan", "resets"), [(names, *VARIANTS[i % 2]) for i, names in enumerate(NAMES)])
def test_whole_sequence_equals_bptt_without_explicit_recurrence(names, scan, resets):
    cells, params, xs = problem(names, resets=resets)
    assert_close(gradient(cells, params, xs, segment_length=99, scan=scan), reference(cells, params, xs, cut=True))


@pytest.mark.parametrize(("names", "resets"), [(names, i % 2 > 0) for i, names in enumerate(NAMES)])
def test_whole_sequence_with_segment_credit_equals_bptt(names, resets):
    cells, params, xs = problem(names, resets=resets)
    actual = gradient(cells, params, xs, segment_length=12, recurrent_credit="segment")
    assert_close(actual, reference(cells, params, xs, cut=False))


@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize(
    ("credit", "scan"), [("none", "sequential"), ("none", "associative"), ("segment", "sequential")]
)
def test_any_batch_shape(batch_shape, credit, scan):
    cells, params, xs = problem(("custom", "brf"), batch_shape=batch_shape, resets=True)
    actual = gradient(cells, params, xs, segment_length=12, recurrent_credit=credit, scan=scan)
    expected = reference(cells, params, xs, cut=credit == "none")
    if batch_shape == (0,):
        assert all(not leaf.any() for leaf in jax.tree.leaves((actual, expected)))
    else:
        assert_close(actual, expected)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_optional_parameters(recurrent, bias):
    cells, params, xs = problem(("alif", "brf"), recurrent=recurrent, bias=bias)
    actual = gradient(cells, params, xs, segment_length=12)
    assert_close(actual, reference(cells, params, xs, cut=True))
    if not recurrent:
        assert_close(actual, reference(cells, params, xs, cut=False))


@pytest.mark.parametrize(("scan", "resets"), VARIANTS)
@pytest.mark.parametrize("name", CELLS)
def test_gradient_of_one_layer_is_independent_of_segment_length(name, scan, resets):
    cells, params, xs = problem((name,), resets=resets)
    expected = reference(cells, params, xs, cut=True)
    for segment_length in LENGTHS[scan]:
        assert_close(gradient(cells, params, xs, segment_length=segment_length, scan=scan), expected)


@pytest.mark.parametrize(("name", "resets"), [("brf", True), ("lif", False), ("custom", True)])
@pytest.mark.parametrize("chunk_length", [1, 2, 4, 99])
def test_the_length_of_chunks_changes_nothing(name, resets, chunk_length):
    cells, params, xs = problem((name, "leaky_integrator"), steps=16, resets=resets)
    options = {"segment_length": 8, "scan": "associative", "chunk_length": chunk_length}
    expected = gradient(cells, params, xs, segment_length=8, scan="sequential")
    assert_close(gradient(cells, params, xs, **options), expected)


@pytest.mark.parametrize("short", [0, 99])
def test_traces_are_the_same_from_gemms_and_from_outer_products(monkeypatch, short):
    cells, params, xs = problem(("custom",), batch_shape=(2, 3), resets=True)
    expected = reference(cells, params, xs, cut=True)
    monkeypatch.setattr(_segment, "SHORT", short)
    monkeypatch.setattr(_segment, "MANY", 1)
    jax.clear_caches()
    for segment_length in (1, 5):
        assert_close(gradient(cells, params, xs, segment_length=segment_length), expected)
    jax.clear_caches()


@pytest.mark.parametrize(("backend", "enough"), [("cpu", 2_048), ("gpu", 131_072)])
def test_auto_cuts_no_segment_whose_steps_have_work_enough(monkeypatch, backend, enough):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert [_recursion.chunks("auto", None, 250, size) for size in (enough - 1, enough)] == [10, 1]


@pytest.mark.parametrize(("names", "credit"), [(("brf",), "none"), (("custom", "leaky_integrator"), "segment")])
def test_what_an_accelerator_does_otherwise_changes_nothing(monkeypatch, names, credit):
    """Several steps compiled as one, with and without a rest, in chunks, no barriers, other sums over the batch."""
    cells, params, xs = problem(names, steps=23, resets=True)
    options = [{"segment_length": length, "recurrent_credit": credit} for length in (1, 7, 12)]
    expected = [gradient(cells, params, xs, **option) for option in options]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.clear_caches()
    for option, gradients in zip(options, expected, strict=True):
        assert_close(gradient(cells, params, xs, **option), gradients)
    exact = hj.bptt(make_model(cells), segment_length=7)
    for model in (make_model(cells), exact):
        loss = lambda p, xs, model=model: loss_of_outputs(model(p, xs), xs["weights"])  # noqa: E731
        assert_close(jax.grad(loss)(params, xs), reference(cells, params, xs, cut=False))
    jax.clear_caches()


@pytest.mark.parametrize("batch_shape", [(), (2, 3)])
def test_independence_of_segment_length_holds_for_any_batch_shape(batch_shape):
    cells, params, xs = problem(("custom",), batch_shape=batch_shape, resets=True)
    expected = reference(cells, params, xs, cut=True)
    for segment_length in (1, 5):
        assert_close(gradient(cells, params, xs, segment_length=segment_length), expected)


@pytest.mark.parametrize("name", CELLS)
def test_one_layer_equals_eprop_step_by_step(name):
    cells, params, xs = problem((name,))
    outputs = oracle.unroll(cells[0], params[0], xs["inputs"])
    zeta = jax.grad(loss_of_outputs)(outputs, xs["weights"])
    expected = oracle.eprop(cells[0], params[0], xs["inputs"], zeta)
    assert_close(gradient(cells, params, xs, segment_length=5)[0], expected)


@pytest.mark.parametrize(("name", "resets"), [(name, i % 2 > 0) for i, name in enumerate(CELLS)])
def test_one_layer_equals_rtrl_without_cross_neuron_blocks(name, resets):
    cells, params, xs = problem((name,), batch_shape=(), steps=8, resets=resets)
    outputs = oracle.unroll(cells[0], params[0], xs["inputs"], xs.get("resets"))
    zeta = jax.grad(loss_of_outputs)(outputs, xs["weights"])
    expected = oracle.block_rtrl(cells[0], params[0], xs["inputs"], zeta, xs.get("resets"))
    assert_close(gradient(cells, params, xs, segment_length=3)[0], expected)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("names", STACKS[1:])
def test_gradient_of_the_top_layer_is_independent_of_segment_length(names, scan):
    cells, params, xs = problem(names)
    expected = reference(cells, params, xs, cut=True)[-1]
    for segment_length in LENGTHS[scan]:
        assert_close(gradient(cells, params, xs, segment_length=segment_length, scan=scan)[-1], expected)


@pytest.mark.parametrize("segment_length", [1, 5])
def test_a_filtered_layer_with_an_instantaneous_readout_is_exact_for_every_segment_length(segment_length):
    cells, params, xs = problem(("filtered",), recurrent=False)
    params = {"layer": params[0], "readout": jax.random.normal(jax.random.key(5), (4, 4), jnp.float64)}

    def loss_fn(params, xs, unroll=hj.unroll):
        return loss_of_outputs(unroll(cells[0], params["layer"], xs["inputs"]) @ params["readout"], xs["weights"])

    actual = jax.jit(hj.hypr_grad(loss_fn, segment_length=segment_length, reduction="sum"))(params, xs)
    assert_close(actual, jax.grad(loss_fn)(params, xs, oracle.unroll))


def test_a_cell_without_parameters():
    spike = hj.surrogate.arctan()
    cell = hj.Cell(
        init=lambda key, n: {},
        rest=lambda neuron, batch_shape, dtype: (jnp.zeros((*batch_shape, 4), dtype),) * 2,
        step=lambda neuron, s, current: ((0.8 * s[0] + current, 0.5 * s[1] + s[0]), spike(s[0] + current - s[1])),
    )
    params = [hj.init_layer(jax.random.key(0), cell, 3, 4, recurrent=True, dtype=jnp.float64)]
    xs = make_data(12, (3,), 3, 4)
    for scan in SCANS:
        assert_close(gradient([cell], params, xs, segment_length=5, scan=scan), reference([cell], params, xs, cut=True))


def test_segment_credit_of_one_step_is_eprop():
    cells, params, xs = problem(("custom",))
    actual = gradient(cells, params, xs, segment_length=1, recurrent_credit="segment")
    assert_close(actual, gradient(cells, params, xs, segment_length=1))


def test_segment_credit_is_a_dial_from_eprop_to_bptt():
    cells, params, xs = problem(("custom",), steps=40)
    bptt = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(reference(cells, params, xs, cut=False))])
    errors = []
    for segment_length in (1, 10, 40):
        grads = gradient(cells, params, xs, segment_length=segment_length, recurrent_credit="segment")
        grads = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads)])
        errors.append(float(jnp.linalg.norm(grads - bptt) / jnp.linalg.norm(bptt)))
    assert errors[0] > errors[1] > 1e-6
    assert errors[2] < 1e-12


def test_error_lost_at_segment_boundaries_vanishes_beyond_the_upper_layers_memory():
    """A leaky readout of τ = 4 steps: the hidden gradient converges to that of the whole sequence as λ/τ grows."""
    cells, params, xs = problem(("brf", "leaky_integrator"), steps=96)
    whole = gradient(cells, params, xs, segment_length=96)[0]["w_in"]
    errors = []
    for segment_length in (1, 4, 16, 48):
        part = gradient(cells, params, xs, segment_length=segment_length)[0]["w_in"]
        errors.append(float(jnp.linalg.norm(part - whole) / jnp.linalg.norm(whole)))
    assert errors[0] > errors[1] > errors[2] > errors[3] > 0
    assert errors[3] < 0.2 * errors[0]


def test_the_value_is_that_of_the_whole_sequence():
    cells, params, xs = problem(("brf", "leaky_integrator"))
    loss_fn = lambda params, xs: make_loss(cells)(params, xs) / len(xs["inputs"])  # noqa: E731
    expected = loss_fn(params, xs)
    for segment_length in (1, 5, 12):
        value, _ = jax.jit(hj.hypr_value_and_grad(loss_fn, segment_length=segment_length))(params, xs)
        assert jnp.allclose(value, expected, rtol=1e-12)


def test_mean_and_sum_reductions_agree_for_a_mean_over_time():
    cells, params, xs = problem(("brf",), steps=13)
    mean_fn = lambda params, xs: make_loss(cells)(params, xs) / len(xs["inputs"])  # noqa: E731
    mean = jax.jit(hj.hypr_grad(mean_fn, segment_length=5))(params, xs)
    total = gradient(cells, params, xs, segment_length=5)
    assert_close(mean, jax.tree.map(lambda g: g / 13, total))


def test_unroll_equals_the_loop():
    for name in CELLS:
        for resets in (False, True):
            cells, params, xs = problem((name,), resets=resets)
            actual = hj.unroll(cells[0], params[0], xs["inputs"], resets=xs.get("resets"))
            expected = oracle.unroll(cells[0], params[0], xs["inputs"], xs.get("resets"))
            assert jnp.abs(expected).max() > 0
            assert jnp.allclose(actual, expected, atol=1e-12)


def test_plain_gradient_is_bptt():
    cells, params, xs = problem(("custom", "brf"), resets=True)
    assert_close(jax.grad(make_loss(cells))(params, xs), reference(cells, params, xs, cut=False))


def test_resets_equal_separate_sequences():
    cells, params, xs = problem(("custom", "leaky_integrator"), steps=10)
    xs["resets"] = jnp.zeros((10, 3), bool).at[6].set(True)
    joined = gradient(cells, params, xs, segment_length=4)
    top = [
        gradient(cells, params, jax.tree.map(lambda x, part=part: x[part], xs), segment_length=20)[-1]
        for part in (slice(0, 6), slice(6, 10))
    ]
    assert_close(joined[-1], jax.tree.map(jnp.add, *top))
