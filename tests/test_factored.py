"""Traces of low rank: exact where traces are of that rank, close elsewhere, small always."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from networks import CELLS, assert_close, assert_equal, make_data, make_loss, make_stack

import hyprjax as hj


def gradients(names, sizes, *, ranks, length=4, batch=(3,), steps=15, resets=False, **options):
    """With factored traces of each rank, and with full ones."""
    cells, params = make_stack(names, 3, sizes)
    xs, loss_fn = make_data(steps, batch, 3, sizes[-1], resets=resets), make_loss(cells)
    options |= {"segment_length": length, "reduction": "mean"}
    factored = [hj.hypr_grad(loss_fn, traces="factored", trace_rank=rank, **options) for rank in ranks]
    return [jax.jit(grad)(params, xs) for grad in (*factored, hj.hypr_grad(loss_fn, **options))]


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("length", [1, 4, 7])
@pytest.mark.parametrize("resets", [False, True])
def test_exact_for_neurons_of_one_leak_without_adaptation(rank, length, resets):
    """`lif` without gradient through the reset, and the leaky readout: the paper's linear-memory case."""
    assert_close(*gradients(["lif", "leaky_integrator"], [6, 2], ranks=[rank], length=length, resets=resets))


@pytest.mark.parametrize("name", CELLS)
def test_exact_for_every_cell_once_the_rank_is_that_of_the_layer(name):
    assert_close(*gradients([name], [5], ranks=[5], length=6))


@pytest.mark.parametrize("batch", [(), (2, 2)])
def test_any_batch_shape_and_segment_credit(batch):
    assert_close(*gradients(["lif"], [4], ranks=[1], batch=batch, recurrent_credit="segment"))


def cosine(a, b):
    a, b = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (a, b))
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


@pytest.mark.parametrize("name", ["alif", "se_adlif", "brf", "custom"])
def test_elsewhere_it_comes_closer_with_the_rank(name):
    *factored, full = gradients([name], [24], ranks=(1, 3, 8), length=8, steps=64)
    found = [cosine(grads, full) for grads in factored]
    assert found[0] > 0.6
    assert found[0] - 1e-6 <= found[1] <= found[2] + 1e-3
    assert found[2] > 0.99, found


def test_the_carry_grows_with_the_sum_of_the_axes_instead_of_their_product():
    cell = hj.alif()
    xs, sizes = jnp.ones((5, 2, 100)), {}
    params = hj.init_layer(jax.random.key(0), cell, 100, 300, recurrent=True)
    loss_fn = lambda params, x: hj.unroll(cell, params, x).mean()  # noqa: E731
    for traces, rank in (("full", 1), ("factored", 2)):
        carry = jax.eval_shape(hj.hypr_stream(loss_fn, traces=traces, trace_rank=rank).init, params, xs)
        sizes[traces] = sum(leaf.size for leaf in jax.tree.leaves(carry[0].traces.synapses))
    rows = 408  # 100 + 300 + 1, filled up to a multiple of 8
    assert sizes == {"full": 2 * 2 * rows * 300, "factored": 2 * 2 * 2 * (rows + 300)}


def test_in_bfloat16_and_float32():
    cells, params = make_stack(["lif"], 3, [6])
    params = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    xs = jax.tree.map(lambda x: x.astype(jnp.float32), make_data(20, (3,), 3, 6))
    full = hj.hypr_grad(make_loss(cells), segment_length=5)(params, xs)
    for dtype, tolerance in ((None, 1e-5), (jnp.bfloat16, 2e-2)):
        options = {"segment_length": 5, "traces": "factored", "trace_dtype": dtype}
        grads = hj.hypr_grad(make_loss(cells), **options)(params, xs)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
        assert np.allclose(grads[0]["w_in"], full[0]["w_in"], rtol=tolerance, atol=tolerance)


def test_a_broken_batch_element_stays_alone_and_a_reset_mends_it():
    cells, params = make_stack(["lif"], 3, [6])
    learner = hj.hypr_stream(make_loss(cells), traces="factored")
    xs = make_data(6, (3,), 3, 6)
    carry = learner.init(params, xs)
    broken = {**xs, "inputs": xs["inputs"].at[2, 1].set(jnp.nan)}
    _, after = learner.value_and_grad(params, carry, broken)
    _, healthy = learner.value_and_grad(params, carry, xs)
    assert_equal(*jax.tree.map(lambda trace: trace[jnp.array([0, 2])], (after, healthy)))
    resets = jnp.zeros((6, 3), bool).at[0].set(True)
    (loss, grads), _ = learner.value_and_grad(params, after, {**xs, "resets": resets})
    chex.assert_tree_all_finite((loss, grads))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_of_devices(kind):
    cells, params = make_stack(["brf", "leaky_integrator"], 3, [8, 2])
    xs, loss_fn = make_data(12, (4,), 3, 2), make_loss(cells)
    learner = hj.hypr_stream(loss_fn, traces="factored", trace_rank=2)
    mesh = jax.make_mesh((2, 4), ("batch", "neurons"), axis_types=(kind,) * 2)
    step = jax.jit(learner.value_and_grad)
    carry = learner.init(params, xs)
    spread, of_carry = hj.shardings(mesh, params, carry)
    there = jax.device_put((params, carry), (spread, of_carry))
    data = jax.device_put(xs, NamedSharding(mesh, PartitionSpec(None, "batch")))
    for _ in range(2):
        (_, grads), carry = step(params, carry, xs)
        (_, grads_there), next_carry = step(*there, data)
        there = there[0], next_carry
        assert_close(jax.device_get(grads_there), jax.device_get(grads))
    same = jax.tree.map(lambda x, sharding: x.sharding.is_equivalent_to(sharding, x.ndim), there[1], of_carry)
    assert all(jax.tree.leaves(same))


def test_clear_errors():
    cells, params = make_stack(["lif"], 3, [6])
    xs, loss_fn = make_data(6, (3,), 3, 6), make_loss(cells)
    with pytest.raises(ValueError, match="traces must be one of 'full', 'factored', got 'none'"):
        hj.hypr_grad(loss_fn, traces="none")
    with pytest.raises(ValueError, match="trace_rank must be a positive int, got 0"):
        hj.hypr_stream(loss_fn, traces="factored", trace_rank=0)
    carry = hj.hypr_stream(loss_fn, traces="factored").init(params, xs)
    with pytest.raises(
        ValueError, match=r"unroll call number 1 holds eligibility traces of another .* same hypr_stream"
    ):
        hj.hypr_stream(loss_fn).value_and_grad(params, carry, xs)
