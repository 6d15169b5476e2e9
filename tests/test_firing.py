"""Layers fire from the start: 1 to 20 % of the steps, whatever the kind and the number of the inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import hyprjax as hj

T, B, N = 400, 4, 64
CELLS = {
    "lif": hj.lif(),
    "lif to zero": hj.lif(reset="zero"),
    "lif of another threshold": hj.lif(threshold=2.0),
    "cuba_lif": hj.cuba_lif(),
    "alif": hj.alif(),
    "ef_adlif": hj.ef_adlif(),
    "se_adlif": hj.se_adlif(),
    "rf": hj.rf(),
    "brf": hj.brf(),
    "brf of other frequencies": hj.brf(omega=(5.0, 60.0), b_offset=(0.1, 2.0)),
    "adex": hj.adex(),
    "izhikevich": hj.izhikevich(),
    "coba_lif": hj.coba_lif(),
    "dh_lif": hj.dh_lif(),
    "two_compartment": hj.two_compartment(),
    "refractory lif": hj.refractory(hj.lif(), 3),
}
KEY = jax.random.key(0)
INPUTS = {f"spikes {p}, {m}": jax.random.bernoulli(KEY, p, (T, B, m)) for p in (0.02, 0.1, 0.3) for m in (20, 700)}
INPUTS |= {f"normal, {m}": jax.random.normal(KEY, (T, B, m), jnp.float32) for m in (1, 100)}
INPUTS["pixels"] = np.repeat(load_digits().images[:B].reshape(B, 64, 1).swapaxes(0, 1) / 16, 6, axis=0)


def rates(cell, inputs, seeds=4, **options):
    def of(key):
        layer = hj.init_layer(key, cell, inputs.shape[-1], N, recurrent=True, **options)
        return hj.unroll(cell, layer, inputs).mean()

    return jax.jit(jax.vmap(of))(jax.random.split(KEY, seeds))


@pytest.mark.parametrize("name", CELLS)
def test_every_model_fires(name):
    for kind, inputs in INPUTS.items():
        of_seeds = np.asarray(rates(CELLS[name], inputs))
        assert 0.01 <= of_seeds.mean() <= 0.2, f"{kind}: {of_seeds}"
        assert of_seeds.min() > 0.007, f"{kind}: {of_seeds}"
        assert of_seeds.max() < 0.22, f"{kind}: {of_seeds}"


def test_a_second_layer_fires():
    for name, cell in CELLS.items():
        spikes = jax.random.bernoulli(KEY, 0.1, (T, B, 50))
        for key in jax.random.split(KEY):
            spikes = hj.unroll(cell, hj.init_layer(key, cell, spikes.shape[-1], N, recurrent=True), spikes)
        assert 0.005 < spikes.mean() < 0.25, f"{name}: {spikes.mean()}"


def test_the_papers_draws_leave_oscillators_silent():
    """Why the defaults are others."""
    silent = rates(hj.brf(), INPUTS["normal, 100"], weights=hj.weights.glorot_uniform)
    assert silent.max() == 0
