"""Neuron parameters stay where their model is defined: checked when a cell is made, kept by `hj.project`."""

import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_equal

import hyprjax as hj

MAKERS = ("lif", "cuba_lif", "alif", "ef_adlif", "se_adlif", "rf", "brf", "leaky_integrator")
CELLS = {
    **{name: getattr(hj, name)() for name in MAKERS},
    "filtered": hj.filtered(hj.brf(), tau=5.0),
    "se_adlif of other ranges": hj.se_adlif(tau_u=(1.0, 2.0), tau_w=(10.0, 10.0), a=(0.2, 0.7), b=(-1.0, 0.5), q=40.0),
    "fast rf": hj.rf(omega=(0.5, 0.9), b_offset=(0.7, 1.1), dt=1.0),
    "fast brf": hj.brf(omega=(0.0, 8.0), b_offset=(0.0, 4.0), dt=0.1, gamma=0.0),
}
N = 200
by_name = pytest.mark.parametrize("name", CELLS)


def wild(cell, dtype=jnp.float64):
    """Parameters of all sizes and both signs, zero among them."""
    rng = np.random.default_rng(0)

    def anything(like):
        values = rng.choice([-1, 1], like.shape) * 10 ** rng.uniform(-4, 4, like.shape)
        return jnp.asarray(values, dtype).at[0].set(0)

    return jax.tree.map(anything, cell.init(jax.random.key(0), N))


same = assert_equal


def close(a, b):
    chex.assert_tree_all_finite(a)
    chex.assert_trees_all_close(a, b, rtol=1e-12, atol=1e-12)


def differ(a, b):
    with pytest.raises(AssertionError, match="not equal"):
        same(a, b)


# --- Cell.project ---------------------------------------------------------------------------------

R = 0.141067  # sqrt(1 - 0.99²)


@pytest.mark.parametrize(
    ("cell", "neuron", "expected"),
    [
        (hj.lif(), {"tau": [-5, 0, 0.01, 20, np.inf]}, {"tau": [5, 0.1, 0.1, 20, np.inf]}),
        (hj.cuba_lif(), {"tau": [-5, 1], "tau_syn": [3, -0.05]}, {"tau": [5, 1], "tau_syn": [3, 0.1]}),
        (
            hj.alif(),
            {"tau": [-5, 1], "tau_a": [3, 0], "beta": [-1, 2]},
            {"tau": [5, 1], "tau_a": [3, 0.1], "beta": [-1, 2]},
        ),
        (hj.leaky_integrator(), {"tau": [-5, 0]}, {"tau": [5, 0.1]}),
        (
            hj.se_adlif(a=(0.2, 0.8), b=(0.0, 2.0)),
            {"tau_u": [-1, 0.3, 7], "tau_w": [2, 0, 1], "a": [0, 0.5, 1], "b": [-1, 1, 3]},
            {"tau_u": [0, 0.3, 1], "tau_w": [1, 0, 1], "a": [0.2, 0.5, 0.8], "b": [0, 1, 2]},
        ),
        (
            hj.brf(),
            {"omega": [-7, 105, 99, 60], "b_offset": [-1, 1, 500, 500]},
            {"omega": [7, 99, 99, 60], "b_offset": [1, 1, 100 * R, 80]},
        ),
        (
            hj.rf(),
            {"omega": [-7, 105, 99, 60, 60], "b": [-1, 1, 500, 0, 500]},
            {"omega": [7, 99, 99, 60, 60], "b": [1, 100 - 100 * R + 0.01, 100 + 100 * R - 0.01, 20.01, 179.99]},
        ),
        (
            hj.filtered(hj.lif()),
            {"cell": {"tau": [-5, 0]}, "tau": [0, -4]},
            {"cell": {"tau": [5, 0.1]}, "tau": [0.1, 4]},
        ),
        (hj.Cell(None, None, None), {"anything": [-1, 1e9]}, {"anything": [-1, 1e9]}),
    ],
    ids=lambda value: value.name if isinstance(value, hj.Cell) else "",
)
def test_where_parameters_go(cell, neuron, expected):
    neuron, expected = (
        jax.tree.map(lambda x: jnp.asarray(x, float), tree, is_leaf=lambda x: isinstance(x, list))
        for tree in (neuron, expected)
    )
    projected = cell.project(neuron)
    chex.assert_trees_all_close(projected, expected, rtol=1e-5, atol=0)


@by_name
def test_what_init_draws_is_in_range(name):
    neuron = CELLS[name].init(jax.random.key(1), N)
    same(CELLS[name].project(neuron), neuron)


@by_name
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64, jnp.bfloat16])
def test_projecting_twice_is_projecting_once_and_keeps_the_dtype(name, dtype):
    project, neuron = CELLS[name].project, wild(CELLS[name], dtype)
    once = project(neuron)
    assert {leaf.dtype for leaf in jax.tree.leaves(once)} == {jnp.dtype(dtype)}
    same(project(once), once)
    differ(once, neuron)


@by_name
def test_the_step_of_a_model_in_range_stays_the_same_function(name):
    """Where `step` takes an absolute value or clips, so does `project`, and nothing else changes."""
    cell = CELLS[name]
    neuron = cell.init(jax.random.key(1), N)
    if "adlif" in name:
        neuron = jax.tree.map(lambda value: 3 * value - 1, neuron)
    else:
        signs = jnp.where(jnp.arange(N) % 3 == 0, -1.0, 1.0)
        neuron = {key: value if key in ("beta", "cell") else value * signs for key, value in neuron.items()}
    projected = cell.project(neuron)
    differ(projected, neuron)
    state = cell.rest(neuron, (3,), jnp.float64)
    for key in jax.random.split(jax.random.key(2), 5):
        current = 30 * jax.random.normal(key, (3, N))
        after, expected = cell.step(projected, state, current), cell.step(neuron, state, current)
        close(after, expected)
        state, _ = expected


@by_name
def test_under_transformations(name):
    project, neuron = CELLS[name].project, wild(CELLS[name])
    rows = jax.tree.map(lambda leaf: leaf.reshape(2, N // 2), neuron)
    close(jax.jit(project)(neuron), project(neuron))
    close(jax.vmap(project)(rows), project(rows))
    grads = jax.grad(lambda neuron: sum(leaf.sum() for leaf in jax.tree.leaves(project(neuron))))(neuron)
    chex.assert_tree_all_finite(grads)


# --- models that stay bounded ---------------------------------------------------------------------


def largest_state(cell, neuron, steps, current=100.0):
    """The largest state variable of `steps` steps of strong random currents, in units of the current."""

    @jax.jit
    def run(neuron):
        def step(state, key):
            state, _ = cell.step(neuron, state, current * jax.random.normal(key, (N,), jnp.float32))
            sizes = [jnp.where(jnp.isfinite(leaf), jnp.abs(leaf), jnp.inf).max() for leaf in jax.tree.leaves(state)]
            return state, jnp.stack(sizes).max()

        start = cell.rest(neuron, (), jnp.float32)
        return jax.lax.scan(step, start, jax.random.split(jax.random.key(0), steps))[1].max()

    return float(run(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), neuron))) / current


@pytest.mark.parametrize("name", [*MAKERS, "filtered"])
def test_every_model_stays_bounded_at_its_defaults(name):
    neuron = CELLS[name].init(jax.random.key(0), N)
    assert largest_state(CELLS[name], neuron, 10_000) < 100


@by_name
def test_every_model_stays_bounded_after_a_projection_from_anywhere(name):
    cell, neuron = CELLS[name], wild(CELLS[name])
    projected = jax.tree.map(lambda x: jnp.minimum(x, 1000.0), cell.project(neuron))  # tau = 10,000 would need longer
    assert largest_state(cell, projected, 10_000) < 1000
    if "rf" in name or name == "filtered":
        assert not largest_state(cell, neuron, 10_000) < 1e9


def test_the_stability_bound_of_forward_euler_is_exact():
    """x' = (-b + iω) x in steps of dt: the bound of `rf`'s docstring is where growth and decay part."""
    dt = 0.01
    omega = np.repeat([0.5, 5.0, 10.0, 50.0, 90.0, 98.9], 2)
    root = np.sqrt(1 - (dt * omega) ** 2)
    lowest, highest = dt * omega**2 / (1 + root), (1 + root) / dt
    for bound, inwards in ((lowest, 1), (highest, -1)):
        for inside in (True, False):
            damping = bound + (inwards if inside else -inwards) * 1e-3
            x = np.abs(1 + dt * (-damping + 1j * omega)) ** 50_000
            assert (x < 1).all() if inside else (x > 1).all()
    kept = hj.rf().project({"omega": jnp.asarray(omega), "b": jnp.asarray(np.tile([0.0, 1e3], 6))})
    assert np.allclose(kept["b"], np.where(np.arange(12) % 2, highest - 0.01, lowest + 0.01), rtol=1e-12)


# --- hj.project -----------------------------------------------------------------------------------

CELL, READOUT = hj.brf(), hj.leaky_integrator()


def layer(cell=CELL, n_in=3, n_out=2):
    """A layer that an optimiser has left out of range."""
    params = hj.init_layer(jax.random.key(0), cell, n_in, n_out, recurrent=True)
    return {**params, "neuron": jax.tree.map(lambda leaf: -leaf, params["neuron"])}


def projected(cell, params):
    return {**params, "neuron": cell.project(params["neuron"])}


class Net(NamedTuple):
    hidden: object
    readout: object


def test_cells_stand_where_their_layers_stand():
    hidden, readout = layer(), layer(READOUT)
    kept, kept_readout = projected(CELL, hidden), projected(READOUT, readout)
    matrix = -jnp.ones((2, 2))
    differ(kept, hidden)
    same(hj.project(CELL, hidden), kept)
    for cells, params, expected in [
        (
            {"hidden": CELL, "readout": READOUT},
            {"hidden": hidden, "readout": readout},
            {"hidden": kept, "readout": kept_readout},
        ),
        ((CELL, READOUT), [hidden, readout], [kept, kept_readout]),
        (Net(CELL, READOUT), Net(hidden, readout), Net(kept, kept_readout)),
        ({"hidden": CELL}, {"hidden": hidden, "w_out": matrix}, {"hidden": kept, "w_out": matrix}),
        ([CELL, None], [hidden, matrix], [kept, matrix]),
        ([None, READOUT], [hidden, readout], [hidden, kept_readout]),
        (None, {"hidden": hidden}, {"hidden": hidden}),
        (
            {"stack": [CELL, CELL], "frozen": None},
            {"stack": [hidden, hidden], "frozen": {"a": hidden, "b": [readout]}},
            {"stack": [kept, kept], "frozen": {"a": hidden, "b": [readout]}},
        ),
    ]:
        same(hj.project(cells, params), expected)
        same(jax.jit(lambda params, cells=cells: hj.project(cells, params))(params), expected)


def test_several_seeds_at_once():
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), {"hidden": layer()})
    cells = {"hidden": CELL}
    same(hj.project(cells, many), jax.vmap(lambda params: hj.project(cells, params))(many))


@pytest.mark.parametrize(
    ("cells", "params", "error", "words"),
    [
        (CELL, [layer()], ValueError, ("cells is a cell, but params is no layer", "layers are at params[0]")),
        (
            {"hiden": CELL},
            {"hidden": layer()},
            ValueError,
            ("cells['hiden'] is a cell", "params['hiden'] is no layer", "params['hidden']"),
        ),
        ([CELL, READOUT], [layer()], ValueError, ("cells[1]", "layers are at params[0]")),
        ([CELL], [layer(), layer()], ValueError, ("params[1] is a layer without a cell", "give cells[1]", "or None")),
        (
            {"hidden": CELL},
            {"hidden": layer(), "block": {"readout": layer(READOUT)}},
            ValueError,
            ("params['block']['readout'] is a layer without a cell", "give cells['block']['readout']"),
        ),
        ({"w": CELL}, {"w": jnp.ones(3)}, ValueError, ("cells['w']", "layers are at no place at all")),
        (
            {"hidden": CELL},
            {"hidden": layer(READOUT)},
            ValueError,
            ("params['hidden'][\"neuron\"] has ['tau']", "'brf' has ['b_offset'], ['omega']"),
        ),
        (hj.dh_lif(), layer(), ValueError, ("['omega']", "'dh_lif' has ['tau']")),
        ([hj.brf], [layer()], TypeError, ("cells[0] must be a Cell or None, got function", "brf()")),
    ],
)
def test_trees_that_do_not_fit(cells, params, error, words):
    with pytest.raises(error, match="^project: .*" + ".*".join(map(re.escape, words))):
        hj.project(cells, params)


# --- what is checked when a cell is made ----------------------------------------------------------

ranges = "a range (low, high)"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: hj.lif(tau=-5), ("lif: tau must be at least 0.1 steps", "-5")),
        (lambda: hj.lif(tau=0), ("lif: tau must be at least 0.1 steps", "0")),
        (lambda: hj.lif(tau=20e-3), ("lif: tau must be at least 0.1 steps", "0.02")),
        (lambda: hj.lif(tau=(10, 5)), ("lif: tau must be a range (low, high) with low <= high", "(10, 5)")),
        (lambda: hj.lif(tau=[5, 20]), ("lif: tau must be a number, a range", "[5, 20]", "give a tuple: tau=(5, 20)")),
        (lambda: hj.lif(tau=(1, 2, 3)), ("lif: tau must be a number, a range", "(1, 2, 3)")),
        (lambda: hj.lif(tau=(5,)), ("lif: tau", "(5,)")),
        (lambda: hj.lif(tau=np.ones(3)), ("lif: tau", "an initializer (key, shape)", "an array of shape (3,)")),
        (lambda: hj.lif(tau=None), ("lif: tau", "None")),
        (lambda: hj.lif(tau=np.nan), ("lif: tau must be finite", "nan")),
        (lambda: hj.lif(tau=(1.0, np.inf)), ("lif: tau must be finite", "inf")),
        (lambda: hj.lif(threshold=np.inf), ("lif: threshold must be positive and finite", "inf")),
        (
            lambda: hj.lif(threshold=jnp.ones(3)),
            ("lif: threshold must be one number", "shape (3,)", "cell of your own"),
        ),
        (lambda: hj.cuba_lif(tau=-1.0), ("cuba_lif: tau must",)),
        (lambda: hj.cuba_lif(tau_syn=(-1.0, 3.0)), ("cuba_lif: tau_syn must", "(-1.0, 3.0)")),
        (lambda: hj.cuba_lif(threshold=-1), ("cuba_lif: threshold",)),
        (lambda: hj.alif(tau=0.0), ("alif: tau must",)),
        (lambda: hj.alif(tau_a=-200.0), ("alif: tau_a must",)),
        (lambda: hj.alif(beta=np.nan), ("alif: beta must be finite",)),
        (lambda: hj.alif(beta=(1, 0)), ("alif: beta must be a range",)),
        (lambda: hj.se_adlif(tau_u=(-5.0, 5.0)), ("se_adlif: tau_u must be at least 0.1 steps", "(-5.0, 5.0)")),
        (lambda: hj.se_adlif(tau_w=[60, 300]), ("se_adlif: tau_w", "give a tuple: tau_w=(60, 300)")),
        (lambda: hj.se_adlif(tau_w=(300.0, 60.0)), ("se_adlif: tau_w", "low <= high")),
        (lambda: hj.ef_adlif(tau_w=(0.0, 300.0)), ("ef_adlif: tau_w must be at least",)),
        (lambda: hj.se_adlif(b=(0.0, np.inf)), ("se_adlif: b must be finite",)),
        (lambda: hj.se_adlif(a=(-1.0, 1.0)), ("se_adlif: a must be at least -1 / q = -0.008333", "runs away")),
        (lambda: hj.se_adlif(a=1.0), ("se_adlif: a must be a range", "1.0")),
        (lambda: hj.se_adlif(q=0.0), ("se_adlif: q must be positive",)),
        (lambda: hj.brf(omega=200.0), ("brf: omega must be 0 to 99 (0.99 / dt)", "diverges", "200.0")),
        (lambda: hj.brf(omega=-5.0), ("brf: omega must be 0 to 99", "-5.0")),
        (lambda: hj.brf(dt=1.0), ("brf: omega must be 0 to 0.99 (0.99 / dt)", "(5.0, 10.0)")),
        (lambda: hj.brf(b_offset=-1.0), ("brf: b_offset must be 0 to 99.5", "omega is 10 and dt is 0.01", "-1.0")),
        (lambda: hj.brf(b_offset=(0.0, 150.0)), ("brf: b_offset must be 0 to 99.5",)),
        (lambda: hj.brf(threshold=-1), ("brf: threshold must be positive", "-1")),
        (lambda: hj.brf(dt=np.nan), ("brf: dt must be positive and finite",)),
        (lambda: hj.brf(gamma=1.0), ("brf: gamma must be in [0, 1)",)),
        (lambda: hj.brf(gamma=-0.1), ("brf: gamma must be in [0, 1)",)),
        (lambda: hj.brf(gamma=np.nan), ("brf: gamma must be in [0, 1)",)),
        (lambda: hj.brf(gamma=[0.9]), ("brf: gamma must be one number",)),
        (lambda: hj.rf(b_offset=(0.0, 3.0)), ("rf: b_offset must be 0.5113 to 199.5", "omega is 10", "(0.0, 3.0)")),
        (lambda: hj.rf(omega=60.0), ("rf: b_offset must be 20.01 to 180", "omega is 60", "(1.0, 3.0)")),
        (lambda: hj.rf(omega=100.0), ("rf: omega must be 0 to 99",)),
        (lambda: hj.leaky_integrator(tau=-3.0), ("leaky_integrator: tau must",)),
        (lambda: hj.filtered(hj.lif(), tau=0.0), ("filtered: tau must",)),
    ],
)
def test_a_maker_refuses_values_at_which_its_model_is_not_defined(make, words):
    with pytest.raises(ValueError, match="^" + ".*".join(map(re.escape, words))) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_numbers_of_all_kinds_ranges_and_initializers_are_taken():
    for tau in (20, np.float32(20.0), np.int64(20), np.array(20.0), jnp.float32(20.0), (20, np.float64(20.0))):
        assert hj.lif(tau=tau).init(jax.random.key(0), 3)["tau"].tolist() == [20.0] * 3
    hj.rf(omega=lambda key, shape: jnp.full(shape, 7.0))  # nothing is known of it
    hj.brf(omega=0.0, b_offset=0.0)


def test_a_traced_initial_value_is_not_looked_at():
    start = jax.jit(lambda tau: hj.lif(tau=tau).init(jax.random.key(0), 2)["tau"])
    assert start(5.0).tolist() == [5.0, 5.0]
