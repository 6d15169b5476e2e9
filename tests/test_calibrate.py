"""`calibrate` finds the input weights at which a layer fires at a rate; `gain` and `weights` choose them by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_equal

import hyprjax as hj

T, B, N = 150, 4, 32
CELLS = {"lif": hj.lif(), "alif": hj.alif(), "se_adlif": hj.se_adlif(), "rf": hj.rf(), "brf": hj.brf()}
KEYS = jax.random.split(jax.random.key(0), 4)
INPUTS = {
    "spikes": jax.random.bernoulli(KEYS[0], 0.05, (T, B, 50)),
    "normal": jax.random.normal(KEYS[1], (T, B, 8), jnp.float32),
    "pixels": (0.5 + 0.5 * jnp.sin(jnp.arange(T) / 9.0)[:, None, None] * jnp.ones((1, B, 1))).astype(jnp.float32),
}


def layer_of(cell, inputs, **options):
    return hj.init_layer(KEYS[2], cell, inputs.shape[-1], N, recurrent=True, **options)


def rate_of(cell, layer, inputs):
    return float(hj.unroll(cell, layer, inputs).mean())


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_the_layer_fires_at_the_rate_that_was_asked_for(name, inputs):
    cell, inputs = CELLS[name], INPUTS[inputs]
    layer = layer_of(cell, inputs)
    for rate in (0.02, 0.1):
        calibrated = hj.calibrate(cell, layer, inputs, rate=rate)
        assert 0.8 * rate < rate_of(cell, calibrated, inputs) < 1.2 * rate
    gains = np.asarray(calibrated["w_in"]) / np.asarray(layer["w_in"])
    assert np.allclose(gains, gains[0, 0], rtol=1e-5), "one gain for all"
    assert calibrated["w_in"].dtype == jnp.float32
    for other in ("w_rec", "bias"):
        assert calibrated[other] is layer[other]


def test_under_jit_and_vmap_over_seeds():
    cell, inputs = CELLS["brf"], INPUTS["normal"]
    make = lambda key: hj.init_layer(key, cell, 8, N, recurrent=True)  # noqa: E731
    layers = jax.vmap(make)(jax.random.split(KEYS[3], 3))
    calibrated = jax.jit(jax.vmap(lambda layer: hj.calibrate(cell, layer, inputs, rate=0.05)))(layers)
    rates = jax.vmap(lambda layer: hj.unroll(cell, layer, inputs).mean())(calibrated)
    assert ((rates > 0.04) & (rates < 0.06)).all(), rates


def test_what_a_filtered_cell_sends_is_its_rate():
    cell, inputs = hj.filtered(CELLS["lif"]), INPUTS["spikes"]
    layer = hj.calibrate(cell, layer_of(cell, inputs), inputs, rate=0.1)
    assert 0.08 < rate_of(cell, layer, inputs) < 0.12


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, [0.1, 0.2]])
def test_rates_that_are_none_are_refused(rate):
    with pytest.raises(ValueError, match=r"calibrate: rate must be a number in \(0, 1\)"):
        hj.calibrate(CELLS["lif"], layer_of(CELLS["lif"], INPUTS["normal"]), INPUTS["normal"], rate=rate)


def test_what_cannot_be_calibrated_is_refused():
    readout, inputs = hj.leaky_integrator(), INPUTS["normal"]
    with pytest.raises(ValueError, match="leaky_integrator sends no spikes"):
        hj.calibrate(readout, layer_of(readout, inputs), inputs)
    with pytest.raises(ValueError, match=r"no gain of w_in makes the layer fire at 0\.05, the nearest is 0"):
        hj.calibrate(CELLS["lif"], layer_of(CELLS["lif"], inputs), jnp.zeros_like(inputs))
    with pytest.raises(ValueError, match=r'params\["w_in"\] has 8 input rows but inputs have 7'):
        hj.calibrate(CELLS["lif"], layer_of(CELLS["lif"], inputs), inputs[..., :7])


def test_gain_scales_the_input_weights_alone():
    plain, scaled = (layer_of(CELLS["brf"], INPUTS["normal"], gain=gain) for gain in (1.0, 100.0))
    assert jnp.allclose(scaled.pop("w_in"), 100 * plain.pop("w_in"))
    assert_equal(scaled, plain)
    with pytest.raises(ValueError, match=r"init_layer: gain must be a positive, finite number, got -1\.0"):
        layer_of(CELLS["brf"], INPUTS["normal"], gain=-1.0)


def test_weights_by_name():
    layer = hj.init_layer(KEYS[0], hj.brf(), 100, 400, recurrent=True, weights=hj.weights.normal_fan_in)
    assert np.isclose(np.std(layer["w_in"]), 0.1, rtol=0.02)
    layer = hj.init_layer(KEYS[0], hj.brf(), 100, 64, weights=hj.weights.heterogeneous(3.0, spread=16.0))
    lengths = np.sort(np.linalg.norm(layer["w_in"], axis=0))
    assert np.allclose(lengths, 3.0 * 16.0 ** ((np.arange(64) + 0.5) / 64 - 0.5), rtol=1e-4)
