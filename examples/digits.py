"""Handwritten digits as a pixel stream: 64 BRF neurons learn them with HYPR and, for comparison, with BPTT.

Scikit-learn's 1,797 real 8x8 digits arrive one pixel at a time, each pixel held for a few steps, and the loss is one of
the whole sequence. Both rules start from the same parameters and see the same batches. Run it:

    python examples/digits.py
"""

import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
import outputs
from tqdm import tqdm

import hyprjax as hj
import hyprjax.data

CELL = hj.brf(omega=(5.0, 60.0), b_offset=(0.1, 2.0))
READOUT = hj.leaky_integrator(tau=20.0)
CELLS = {"hidden": CELL, "readout": READOUT}
RULES = ["hypr", "bptt"]


class Run(NamedTuple):
    """What training with one rule left behind."""

    params: dict
    accuracy: list[float]
    seconds_per_epoch: float
    memory: int


def init_params(key, neurons):
    key_hidden, key_readout = jax.random.split(key)
    hidden = hj.init_layer(key_hidden, CELL, n_in=1, n_out=neurons, recurrent=True)
    return {"hidden": hidden, "readout": hj.init_layer(key_readout, READOUT, n_in=neurons, n_out=10)}


def model(params, streams):
    """Readout `[steps, digits, 10]` and spikes of pixel streams `[steps, digits, 1]`."""
    spikes = hj.unroll(CELL, params["hidden"], streams)
    return hj.unroll(READOUT, params["readout"], spikes), spikes


def answer(model, params, xs):
    """What the network says of a digit: the readout averaged over the last quarter, when most has been seen."""
    logits, _ = model(params, xs["inputs"])
    return logits[3 * len(logits) // 4 :].mean(0)


def loss_fn(model, params, xs):
    """One cross entropy for a whole sequence, whose label is the same at every step."""
    return optax.softmax_cross_entropy_with_integer_labels(answer(model, params, xs), xs["targets"][0]).mean()


@jax.jit
def accuracy(params, xs):
    return (answer(model, params, xs).argmax(-1) == xs["targets"][0]).mean()


def train(rule, params, data, test, options):
    wrapped = {"hypr": hj.hypr(model, segment_length=options.segment_length), "bptt": hj.bptt(model)}[rule]
    gradient = jax.jit(jax.value_and_grad(partial(loss_fn, wrapped)))
    updates = data.size // options.batch_size
    schedule = optax.cosine_decay_schedule(options.learning_rate, options.epochs * updates)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    state = optimiser.init(params)

    @jax.jit
    def update(params, state, grads):
        changes, state = optimiser.update(grads, state, params)
        return hj.project(CELLS, optax.apply_updates(params, changes)), state

    memory = gradient.lower(params, data.batch(slice(options.batch_size))).compile().memory_analysis()
    rng = np.random.default_rng(options.seed)
    curve, times = [float(accuracy(params, test))], []
    progress = tqdm(range(options.epochs), desc=rule, unit="epoch")
    for _ in progress:
        start, loss = time.perf_counter(), 0.0
        order = rng.permutation(data.size)[: updates * options.batch_size].reshape(updates, -1)
        for batch in order:
            value, grads = gradient(params, data.batch(batch))
            params, state = update(params, state, grads)
            loss += float(value) / updates
        times.append(time.perf_counter() - start)
        curve.append(float(accuracy(params, test)))
        progress.set_postfix(loss=f"{loss:.3f}", test=f"{100 * curve[-1]:.1f}%")
    return Run(params, curve, float(np.median(times)), memory.temp_size_in_bytes)


def main(arguments=None):
    parser = outputs.parser(__doc__)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES, help="what to train with")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the 1,437 training digits")
    parser.add_argument("--batch-size", type=int, default=64, help="digits per update")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="of Adam, decayed to 0 by a cosine")
    parser.add_argument("--neurons", type=int, default=64, help="BRF neurons in the recurrent layer")
    parser.add_argument("--hold", type=int, default=4, help="steps each pixel is shown; a digit lasts 64 times as many")
    parser.add_argument("--segment-length", type=int, default=64, help="steps per segment of HYPR")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and batches")
    parser.add_argument("--figure", type=Path, default=outputs.OUT / "digits.png", help="where to save the picture")
    options = parser.parse_args(arguments)
    data, test = hj.data.digits(hold=options.hold)
    test = test.batch(slice(None))
    params = init_params(jax.random.key(options.seed), options.neurons)
    runs = {rule: train(rule, params, data, test, options) for rule in options.rules}
    outputs.digits(options.figure, runs, model, test)
    return runs


if __name__ == "__main__":
    main()
