"""The neuron models, one file for each family: equations, source, maker.

Time is in steps wherever nothing else is said: a time constant of 20 is 20 steps. A parameter's
initial value is a number (the same for all neurons), a `(low, high)` range (drawn uniformly) or an
initializer `(key, shape) -> array`. `z[t]` is the spike, `I[t]` the synaptic current,
`Θ` the spike function with its surrogate derivative, `sg` a stopped gradient.

What is known of a model when it is made is checked then; `Cell.project` keeps training inside the same bounds. A time
constant is at least 0.1 steps: the decay is 5e-5 there, no memory at all, and has a gradient yet by which it can grow.
An infinite one makes an integrator.

Input weights have the scale at which a layer fires at 1 to 20 % on spikes, on normal inputs and on pixels
(`tests/test_firing.py`): in units of the threshold, times what a step multiplies a current by.
"""

from hyprjax.cells._adlif import ef_adlif, se_adlif
from hyprjax.cells._biophysical import adex, coba_lif, izhikevich
from hyprjax.cells._dendrites import dh_lif, two_compartment
from hyprjax.cells._gated import gru, lstm
from hyprjax.cells._lif import alif, cuba_lif, lif
from hyprjax.cells._oscillators import brf, rf
from hyprjax.cells._readout import leaky_integrator
from hyprjax.cells._wrappers import filtered, refractory, with_state

__all__ = [
    "adex",
    "alif",
    "brf",
    "coba_lif",
    "cuba_lif",
    "dh_lif",
    "ef_adlif",
    "filtered",
    "gru",
    "izhikevich",
    "leaky_integrator",
    "lif",
    "lstm",
    "refractory",
    "rf",
    "se_adlif",
    "two_compartment",
    "with_state",
]
