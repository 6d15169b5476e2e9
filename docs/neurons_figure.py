"""The picture of docs/neurons.md: every neuron model's answer to a current step and to an oscillating current.

python docs/neurons_figure.py docs/images/neurons.png
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import hyprjax as hj

STEPS, ON, OFF = 400, 50, 300
MIDDLE = {"tau_u": 0.5, "tau_w": 0.5, "a": 0.5, "b": 0.3}
MODELS = {  # cell, current, values of neuron parameters to show
    "lif": (hj.lif(), 0.12, {}),
    "cuba_lif": (hj.cuba_lif(), 0.2, {}),
    "alif": (hj.alif(tau_a=100.0), 0.1, {}),
    "ef_adlif": (hj.ef_adlif(), 5.0, MIDDLE),
    "se_adlif": (hj.se_adlif(), 5.0, MIDDLE),
    "rf": (hj.rf(omega=10.0, b_offset=1.5), 8.0, {}),
    "brf": (hj.brf(omega=10.0, b_offset=1.0), 14.0, {}),
    "adex": (hj.adex(), 2.0, {}),
    "izhikevich": (hj.izhikevich(), 0.1, {}),
    "coba_lif": (hj.coba_lif(), {"exc": 0.1, "inh": 0.02}, {}),
    "dh_lif": (hj.dh_lif(tau=20.0, branches=2), 2.5, {"tau_branch": {"branch0": 10.0, "branch1": 100.0}}),
    "two_compartment": (hj.two_compartment(beta_d=0.1, beta_s=0.1), 0.1, {}),
    "leaky_integrator": (hj.leaky_integrator(), 1.0, {}),
    "filtered": (hj.filtered(hj.lif(), tau=20.0), 0.4, {}),
    "refractory": (hj.refractory(hj.lif(), 20), 0.12, {}),
    "gru": (hj.gru(), {"r": 0.0, "z": 3.0, "n_in": 1.0, "n_rec": 0.0}, {}),
    "lstm": (hj.lstm(), {"i": -3.0, "f": 3.0, "g": 1.0, "o": 0.0}, {}),
}
MAGNIFIED = {"izhikevich": 3.0}
GATES = ("r", "z", "i", "f", "o")  # held open or shut
PERIOD = 63  # steps: that of an oscillator with ω = 10 at dt = 0.01


def respond(cell, amplitude, current, values):
    """State variables `{name: [STEPS]}` and output of one neuron."""
    neuron = cell.init(jax.random.key(0), 1)
    neuron = neuron | jax.tree.map(lambda value: jnp.full(1, value), values)
    by_port = amplitude if isinstance(amplitude, dict) else dict.fromkeys(cell.ports, amplitude)
    currents = {port: size * (1.0 if port in GATES else current) * jnp.ones(STEPS) for port, size in by_port.items()}

    def step(state, current):
        state, output = cell.step(neuron, state, jax.tree.map(lambda x: x[None], current))
        return state, (state, output)

    given = currents if cell.ports else amplitude * current
    _, (states, outputs) = jax.lax.scan(step, cell.rest(neuron, (), jnp.float32), given)
    inner = states.pop("cell", {}) if isinstance(states, dict) else {}
    return {name: np.asarray(trace[:, 0]) for name, trace in {**inner, **states}.items()}, np.asarray(outputs[:, 0])


def main(path):
    time = np.arange(STEPS)
    window = (time >= ON) & (time < OFF)
    currents = {"current step": window * 1.0, "oscillating current": window * np.sin(2 * np.pi * (time - ON) / PERIOD)}
    figure, axes = plt.subplots(len(MODELS), 2, figsize=(11, 1.7 * len(MODELS)), sharex=True, layout="constrained")
    for row, (name, (cell, amplitude, values)) in zip(axes, MODELS.items(), strict=True):
        for axis, (title, current) in zip(row, currents.items(), strict=True):
            states, output = respond(cell, amplitude, jnp.asarray(current, jnp.float32), values)
            for variable, trace in states.items():
                factor = MAGNIFIED.get(name, min(1.0, 2 / np.abs(trace).max()))
                axis.plot(factor * trace, lw=1, label=f"{factor:g} {variable}" if factor > 1 else variable)
            spikes = np.flatnonzero(output == 1) if set(output) <= {0, 1} else []
            axis.eventplot(spikes, lineoffsets=2.6, linelengths=0.5, color="black", lw=0.8)
            axis.fill_between(time, -2.6, -2.6 + 0.5 * current, color="gray", alpha=0.4, lw=0)
            axis.set(ylim=(-3.2, 3.0), yticks=[-2, 0, 2])
            axis.set_title(f"{name}, {title}", fontsize=9)
        row[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for axis in axes[-1]:
        axis.set_xlabel("step")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main(sys.argv[1])
