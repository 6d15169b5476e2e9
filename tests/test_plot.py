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
        (lambda: plot.learning_curves({}), "curves is empty"),
        (lambda: plot.learning_curves({"a": np.zeros((2, 2, 2))}), r"'a' must be \[epochs\]"),
        (lambda: plot.spectrum(make("lif")[1]), "no neuron parameter 'omega'"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
