"""Pictures show what was computed."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from networks import CELLS

import hyprjax as hj
from hyprjax import plot


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def make(name, **options):
    cell = CELLS[name]
    params = hj.init_layer(jax.random.key(0), cell, 3, 5, dtype=jnp.float64, **options)
    return cell, params | {"w_in": 3 * jnp.abs(params["w_in"])}, jax.random.uniform(jax.random.key(1), (40, 3))


def test_raster_has_a_dot_per_spike(ax):
    spikes = np.random.default_rng(0).random((50, 6)) < 0.2
    assert plot.raster(spikes, dt=0.5, ax=ax) is ax
    assert np.array_equal(ax.collections[0].get_offsets(), np.argwhere(spikes) * [0.5, 1])


@pytest.mark.parametrize("name", ["brf", "custom", "filtered"])
def test_membrane_shows_the_states_a_loop_goes_through(ax, name):
    cell, params, inputs = make(name, recurrent=True)
    net, trajectory, outputs = hj.stream(lambda params, x: hj.unroll(cell, params, x)), [], []
    carry = net.init(params, inputs)
    for x in inputs:
        z, carry = net.apply(params, carry, x[None])
        trajectory.append(jax.tree.leaves(carry[0].state))
        outputs.append(z[0])
    plot.membrane(cell, params, inputs, neurons=[2, 4], ax=ax)
    k = len(trajectory[0])
    expected = [[step[c][neuron] for step in trajectory] for neuron in (2, 4) for c in range(k)]
    assert np.allclose([line.get_ydata() for line in ax.lines], expected, rtol=0, atol=1e-12)
    shown = [len(dots.get_offsets()) for dots in ax.collections]
    assert shown == [int(np.sum(np.asarray(outputs)[:, neuron] == 1)) for neuron in (2, 4)]


def test_eligibility_shows_the_traces_of_inputs_and_recurrent_synapses(ax):
    cell, params, inputs = make("leaky_integrator", recurrent=True)
    plot.eligibility(cell, params, inputs, neuron=1, variable="v", ax=ax)
    shown = ax.images[0].get_array()
    outputs = np.asarray(hj.unroll(cell, params, inputs))
    presynaptic = np.concatenate([inputs, np.concatenate([np.zeros((1, 5)), outputs[:-1]])], axis=1)
    trace, decay = 0.0, np.exp(-1 / 4)
    for t, p in enumerate(presynaptic):
        trace = decay * trace + (1 - decay) * p
        assert np.allclose(shown[:, t], trace, rtol=0, atol=1e-12)


def test_learning_curves_show_mean_and_deviation_over_seeds(ax):
    values = np.random.default_rng(0).random((8, 3))
    plot.learning_curves({"one": values[:, 0], "three": values}, ylabel="accuracy", ax=ax)
    assert np.allclose(ax.lines[0].get_ydata(), values[:, 0])
    assert np.allclose(ax.lines[1].get_ydata(), values.mean(1))
    band = ax.collections[0].get_paths()[0].get_extents()
    assert band.y1 == pytest.approx((values.mean(1) + values.std(1, ddof=1)).max())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "three"]


def test_more_seeds_than_epochs_are_drawn_as_they_are_with_a_warning(ax):
    values = np.random.default_rng(0).random((3, 50))
    with pytest.warns(UserWarning, match=r"'HYPR' has 50 seeds of 3 epochs; .*\[epochs, seeds\], .*transpose"):
        plot.learning_curves({"HYPR": values}, ax=ax)
    assert np.allclose(ax.lines[0].get_ydata(), values.mean(1))
    with pytest.warns(UserWarning, match="'one' has 50 seeds of 1 epochs"):
        plot.learning_curves({"one": values[:1]}, ax=ax)
    plot.learning_curves({"square": values[:, :3], "transposed": values.T}, ax=ax)  # no warning
    assert np.allclose(ax.lines[3].get_ydata(), values.mean(0))


def visible(line):
    """How many values of a line can be seen: those with a finite neighbour, or a marker."""
    y = np.asarray(line.get_ydata(), float)
    finite = np.pad(np.isfinite(y), 1)
    joined = finite[1:-1] & (finite[:-2] | finite[2:])
    every = range(len(y)) if line.get_markevery() is None else line.get_markevery()
    marked = set(every) if line.get_marker() not in ("None", None, "") else set()
    return sum(bool(finite[i + 1] and (joined[i] or i in marked)) for i in range(len(y)))


def test_every_finite_value_of_a_curve_is_visible(ax):
    gaps = [1.0, np.nan, 2.0, 3.0, np.inf, 4.0]
    plot.learning_curves({"one epoch": [0.5], "gaps": gaps, "whole": [1, 2, 3]}, ax=ax)
    assert [visible(line) for line in ax.lines] == [1, 4, 3]
    assert ax.lines[2].get_marker() == "None"
    plot.learning_curves({"mine": gaps}, marker="x", ax=ax)
    assert (ax.lines[3].get_marker(), ax.lines[3].get_markevery()) == ("x", None)


def test_one_neuron_one_variable_one_step(ax):
    cell, params, inputs = make("brf")
    plot.membrane(cell, params, inputs[:1], neurons=-1, variables="u", ax=ax)
    assert [line.get_label() for line in ax.lines] == ["u, neuron 4"]
    assert visible(ax.lines[0]) == 1


def test_what_is_not_finite_says_so(ax):
    cell, params, inputs = make("leaky_integrator")
    hurt = inputs.at[7, 1].set(jnp.nan)
    with pytest.warns(UserWarning, match="membrane: v, neuron 2, is nan at step 7; it cannot be drawn"):
        plot.membrane(cell, params, hurt, neurons=[2], ax=ax)
    assert visible(ax.lines[0]) == 7
    with pytest.raises(ValueError, match="the traces of neuron 0 are not finite from step 7 on"):
        plot.eligibility(cell, params, hurt, ax=ax)


def test_a_silent_layer_says_so(ax):
    plot.raster(np.zeros((50, 6)), ax=ax)
    assert [text.get_text() for text in ax.texts] == ["no spikes"]


def test_spectrum_looks_into_filtered_neurons(ax):
    layer = hj.init_layer(jax.random.key(0), hj.filtered(hj.rf()), 3, 10)
    plot.spectrum(layer, ax=ax)
    assert sum(bar.get_height() for bar in ax.containers[0]) == 10


def test_spectrum_counts_every_neuron_before_and_after(ax):
    before = hj.init_layer(jax.random.key(0), hj.brf(), 3, 40)
    after = before | {"neuron": before["neuron"] | {"omega": -2 * before["neuron"]["omega"]}}
    plot.spectrum({"before": before, "after": after}, bins=np.linspace(0, 4, 9), ax=ax)
    counts = [sum(bar.get_height() for bar in bars) for bars in ax.containers]
    assert counts == [40, 40]
    centre = [np.average(np.arange(0.25, 4, 0.5), weights=[b.get_height() for b in bars]) for bars in ax.containers]
    assert centre[1] == pytest.approx(2 * centre[0], abs=0.25)


def test_current_axes_are_the_default(ax):
    plt.sca(ax)
    assert plot.spectrum(hj.init_layer(jax.random.key(0), hj.rf(), 3, 4)) is ax


def test_clear_errors(ax):
    cell, params, inputs = make("brf")
    for call, words in [
        (
            lambda: plot.raster(np.zeros((5, 2, 3))),
            r"raster: spikes must be \[t, n\], its shape is \(5, 2, 3\).*spikes",
        ),
        (lambda: plot.membrane(cell, params, inputs[None]), r"membrane: inputs must be \[t, n_in\]"),
        (lambda: plot.membrane(cell, params, inputs, variables=["w"]), r"no variable 'w'; it has \['q', 'u', 'v'\]"),
        (lambda: plot.eligibility(cell, params, inputs, variable=3), r"no variable 3; it has \['q', 'u', 'v'\]"),
        (lambda: plot.raster(np.zeros(5)), r"raster: spikes must be \[t, n\], .*spikes\[:, None\]"),
        (lambda: plot.raster(np.zeros((0, 3))), r"raster: spikes is empty, its shape is \(0, 3\)"),
        (lambda: plot.raster(np.array([[0.0], [np.nan]])), "raster: spikes hold NaN, from step 1 on"),
        (lambda: plot.raster(np.ones((2, 2)), dt=0.0), r"raster: dt must be a positive number, got 0\.0"),
        (lambda: plot.membrane(cell, params, inputs, neurons=[5]), "membrane: there is no neuron 5, the layer has 5"),
        (lambda: plot.membrane(cell, params, inputs, neurons=[]), "membrane: there is nothing to draw"),
        (lambda: plot.membrane(cell, params, inputs, variables=[]), "membrane: there is nothing to draw"),
        (lambda: plot.eligibility(cell, params, inputs, neuron=5), "eligibility: there is no neuron 5"),
        (lambda: plot.learning_curves({}), "curves is empty"),
        (lambda: plot.learning_curves({"a": np.zeros((2, 2, 2))}), r"'a' must be \[epochs\]"),
        (lambda: plot.learning_curves({"a": [[1.0], [1.0, 2.0]]}), r"'a' must be an array .* seeds of equal length"),
        (lambda: plot.learning_curves({"a": [np.nan, np.nan]}), "'a' has no epoch with a finite value"),
        (lambda: plot.learning_curves({"a": []}), "'a' has no epoch with a finite value"),
        (lambda: plot.learning_curves({"a": np.ones((3, 0))}), "'a' has no epoch with a finite value"),
        (lambda: plot.spectrum(make("lif")[1]), "no neuron parameter 'omega'"),
        (lambda: plot.spectrum({}), "a dict of label -> parameters"),
        (
            lambda: plot.spectrum({"a": {"neuron": {"omega": np.array([1.0, np.nan])}}}),
            "omega of layer 'a' is not finite",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match=r"curves must be a dict .* got ndarray"):
        plot.learning_curves(np.ones(5))
    for draw in (plot.raster, lambda spikes, ax: plot.learning_curves({"a": [1.0]}, ax=ax)):
        with pytest.raises(TypeError, match=r"ax must be one Axes, got ndarray; .*axes\[0, 0\]"):
            draw(np.ones((2, 2)), ax=np.array([ax, ax]))
