"""What the compiled program needs: memory, flops, copies. Never times."""

import re

import jax
import jax.extend.core as jec
import jax.numpy as jnp
import optax
import pytest

import hyprjax as hj
from benchmarks.rules import Case, checkpointed, exact, problem
from hyprjax._recursion import chunks
from hyprjax._sequence import bptt_length, default_length


@pytest.fixture(autouse=True)
def optimised():
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def temporary_bytes(f, steps, batch=8):
    cell, readout = hj.brf(), hj.leaky_integrator()
    shapes = jax.eval_shape(
        lambda key: {
            "hidden": hj.init_layer(key, cell, 20, 32, recurrent=True),
            "readout": hj.init_layer(key, readout, 32, 5),
        },
        jax.random.key(0),
    )
    xs = {
        "inputs": jax.ShapeDtypeStruct((steps, batch, 20), jnp.float32),
        "labels": jax.ShapeDtypeStruct((steps, batch), jnp.int32),
    }

    def loss_fn(params, xs):
        spikes = hj.unroll(cell, params["hidden"], xs["inputs"])
        logits = hj.unroll(readout, params["readout"], spikes)
        return optax.softmax_cross_entropy_with_integer_labels(logits, xs["labels"]).mean()

    return jax.jit(f(loss_fn)).lower(shapes, xs).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("credit", ["none", "segment"])
def test_memory_does_not_grow_with_the_sequence(credit):
    f = lambda loss_fn: hj.hypr_value_and_grad(loss_fn, recurrent_credit=credit)  # noqa: E731
    short, long = temporary_bytes(f, 1_000), temporary_bytes(f, 16_000)
    assert long <= 1.02 * short
    assert long < 0.1 * temporary_bytes(jax.value_and_grad, 16_000)


# --- flops and copies of one layer ----------------------------------------------------------------

M, N, BATCH = 200, 100, 8
ROWS = M + N + 1


def layer(name):
    cell = getattr(hj, name)()
    params = hj.init_layer(jax.random.key(0), cell, M, N, recurrent=True)
    return params, lambda params, xs: hj.unroll(cell, params, xs).mean()


@pytest.mark.parametrize(("name", "k"), [("lif", 1), ("se_adlif", 2), ("brf", 3)])
def test_a_segment_costs_the_flops_of_its_gemms(name, k):
    """One GEMM for the weights, one per state variable for the traces, one for the inputs' gradient and no other."""
    params, loss_fn = layer(name)
    learner = hj.hypr_stream(loss_fn)

    def flops(steps):
        xs = jnp.zeros((steps, BATCH, M))
        compiled = jax.jit(learner.value_and_grad).lower(params, learner.init(params, xs), xs).compile()
        return compiled.cost_analysis()["flops"]

    feedforward_and_gradients = 2 * BATCH * N * (M + (1 + k) * ROWS)
    assert (flops(128) - flops(64)) / 64 == pytest.approx(feedforward_and_gradients, rel=0.02)


@pytest.mark.parametrize(("name", "k"), [("lif", 1), ("brf", 3)])
def test_traces_are_copied_at_most_once_per_segment(name, k):
    params, loss_fn = layer(name)
    xs = jnp.zeros((256, BATCH, M))
    program = jax.jit(hj.hypr_grad(loss_fn, segment_length=64)).lower(params, xs).compile().as_text()
    # Those of the loop's entry included: its k buffers start as one array of zeros.
    assert len(re.findall(rf"f32\[{BATCH},{ROWS},{N}\]\S* copy\(", program)) <= 2 * k
    assert not re.findall(rf"f32\[{BATCH},{ROWS},{N}\]\S* transpose\(", program)


@pytest.mark.parametrize(
    ("steps", "length"), [(1, 1), (250, 250), (300, 300), (1000, 250), (1300, 260), (1301, 261), (16_000, 250)]
)
def testdefault_length(steps, length):
    assert default_length(steps) == length
    assert all(n <= 500 for n in map(default_length, range(1, 3000)))


@pytest.mark.parametrize(
    ("scan", "length", "steps", "size", "expected"),
    [
        ("sequential", None, 250, 16, 1),
        ("sequential", 5, 250, 16, 1),
        ("associative", None, 250, 4096, 10),
        ("associative", None, 251, 4096, 1),
        ("associative", None, 1, 1, 1),
        ("associative", 1, 250, 4096, 250),
        ("associative", 4, 250, 4096, 125),
        ("associative", 999, 250, 4096, 1),
        ("auto", None, 250, 4096, 1),
        ("auto", None, 250, 128, 10),
    ],
)
def test_chunks_of_a_segment_on_a_cpu(scan, length, steps, size, expected):
    assert chunks(scan, length, steps, size) == expected
    assert steps % chunks(scan, length, steps, size) == 0


# --- models ---------------------------------------------------------------------------------------


def bytes_of_model(wrap, steps, batch=8):
    """Temporary bytes of the gradient of a loss of the whole sequence, and bytes of the outputs."""
    cell, readout = hj.brf(), hj.leaky_integrator()
    shapes = jax.eval_shape(
        lambda key: [
            hj.init_layer(key, cell, 20, 32, recurrent=True),
            hj.init_layer(key, readout, 32, 5),
        ],
        jax.random.key(0),
    )
    model = wrap(lambda p, x: hj.unroll(readout, p[1], hj.unroll(cell, p[0], x)))
    loss = lambda p, x: jnp.sin(model(p, x).mean(0)).sum()  # noqa: E731
    xs = jax.ShapeDtypeStruct((steps, batch, 20), jnp.float32)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(shapes, xs).compile()
    return compiled.memory_analysis().temp_size_in_bytes, steps * batch * 5 * 4


def test_memory_of_hypr_beyond_the_outputs_does_not_grow_with_time():
    (short, out_short), (long, out_long) = bytes_of_model(hj.hypr, 1_000), bytes_of_model(hj.hypr, 16_000)
    assert long - 2 * out_long <= 1.02 * (short - 2 * out_short) + out_short
    assert long < 0.1 * bytes_of_model(lambda f: f, 16_000)[0]


def test_memory_of_bptt_is_that_of_carries_and_one_segment():
    for steps in (1_000, 16_000):
        bytes_of_bptt, outputs = bytes_of_model(hj.bptt, steps)
        assert bytes_of_bptt - 2 * outputs < 4 * bytes_of_model(lambda f: f, steps)[0] / steps**0.5


@pytest.mark.parametrize("name", ["lif", "alif", "se_adlif", "brf"])
def test_bptt_needs_the_memory_of_checkpointing_by_hand_and_no_outer_product_a_step(name):
    case = Case(name, inputs=20, neurons=64, batch=8, steps=1000, classes=5)
    params, xs, loss_fn = problem(case)
    by_hand, by_bptt = checkpointed(loss_fn, bptt_length(case.steps)), exact(case)
    memory = lambda f: jax.jit(f).lower(params, xs).compile().memory_analysis().temp_size_in_bytes  # noqa: E731
    assert memory(by_bptt) < 1.1 * memory(by_hand)
    products = lambda f: products_of_steps(jax.make_jaxpr(f)(params, xs).jaxpr, (64, 64))  # noqa: E731
    assert (products(by_hand), products(by_bptt)) == (1, 0)


def products_of_steps(jaxpr, shape, scans=0):
    """How many matrix products of this shape the steps of its segments make."""
    found = 0
    for eqn in jaxpr.eqns:
        found += scans == 2 and eqn.primitive.name == "dot_general" and eqn.outvars[0].aval.shape == shape
        inside = scans + (eqn.primitive.name == "scan")
        found += sum(products_of_steps(inner, shape, inside) for inner in jec.jaxprs_in_params(eqn.params))
    return found


@pytest.mark.parametrize(
    ("steps", "length"), [(1, 1), (2, 2), (3, 1), (784, 28), (1000, 40), (1300, 50), (1301, 37), (16_000, 128)]
)
def test_default_segment_length_of_bptt(steps, length):
    assert bptt_length(steps) == length
    for n in range(1, 3000):
        assert n**0.5 / 2 - 1 <= bptt_length(n) <= 2 * n**0.5 + 1
