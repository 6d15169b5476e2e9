"""Handwritten digits as a pixel stream: 64 BRF neurons learn them with HYPR and, for comparison, with BPTT.

Scikit-learn's 1,797 real 8x8 digits arrive one pixel at a time, each pixel held for a few steps, and the loss is one of
the whole sequence. Both rules start from the same parameters and see the same batches. Run it:

    python examples/digits.py
"""

import argparse
import time
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import hyprjax as hj

CELL = hj.brf(omega=(5.0, 60.0), b_offset=(0.1, 2.0))
READOUT = hj.leaky_integrator(tau=20.0)
CELLS = {"hidden": CELL, "readout": READOUT}


class Data(NamedTuple):
    """Pixel streams `[steps, samples, 1]` and labels `[samples]`."""

    streams: np.ndarray
    labels: np.ndarray


class Run(NamedTuple):
    """What training with one rule left behind."""

    params: dict
    accuracy: list[float]
    seconds_per_epoch: float
    memory: int


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--rules", nargs="+", choices=["hypr", "bptt"], default=["hypr", "bptt"], help="what to train with"
    )
    parser.add_argument("--epochs", type=int, default=20, help="passes over the 1,437 training digits")
    parser.add_argument("--batch-size", type=int, default=64, help="digits per update")
    parser.add_argument("--learning-rate", type=float, default=0.1, help="of Adam, decayed to 0 by a cosine")
    parser.add_argument("--neurons", type=int, default=64, help="BRF neurons in the recurrent layer")
    parser.add_argument("--hold", type=int, default=4, help="steps each pixel is shown; a digit lasts 64 times as many")
    parser.add_argument("--segment-length", type=int, default=64, help="steps per segment of HYPR")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and batches")
    parser.add_argument("--figure", type=Path, default=Path("digits.png"), help="where to save the picture")
    return parser.parse_args(arguments)


def load_data(hold):
    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)

    def streams(images):
        return np.repeat(images.T[:, :, None] / 16, hold, axis=0).astype(np.float32)

    return Data(streams(parts[0]), parts[2]), Data(streams(parts[1]), parts[3])


def init_params(key, neurons):
    key_hidden, key_readout = jax.random.split(key)
    return {
        "hidden": hj.init_layer(key_hidden, CELL, n_in=1, n_out=neurons, recurrent=True),
        "readout": hj.init_layer(key_readout, READOUT, n_in=neurons, n_out=10),
    }


def model(params, streams):
    """Readout and spikes at every step."""
    spikes = hj.unroll(CELL, params["hidden"], streams)
    return hj.unroll(READOUT, params["readout"], spikes), spikes


def answer(logits):
    """What the network says of a digit: the readout averaged over the last quarter, when most has been seen."""
    return logits[3 * len(logits) // 4 :].mean(0)


def loss_of(model):
    """One cross entropy for a whole sequence."""

    def loss(params, data):
        logits, _ = model(params, data.streams)
        return optax.softmax_cross_entropy_with_integer_labels(answer(logits), data.labels).mean()

    return loss


@jax.jit
def accuracy(params, data):
    logits, _ = model(params, data.streams)
    return (answer(logits).argmax(-1) == data.labels).mean()


def train(rule, params, train_data, test_data, options):
    wrapped = {"hypr": hj.hypr(model, segment_length=options.segment_length), "bptt": hj.bptt(model)}[rule]
    gradient = jax.jit(jax.value_and_grad(loss_of(wrapped)))
    samples = train_data.streams.shape[1]
    updates = samples // options.batch_size
    schedule = optax.cosine_decay_schedule(options.learning_rate, options.epochs * updates)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    state = optimiser.init(params)

    @jax.jit
    def update(params, state, grads):
        changes, state = optimiser.update(grads, state, params)
        return hj.project(CELLS, optax.apply_updates(params, changes)), state

    first = Data(train_data.streams[:, : options.batch_size], train_data.labels[: options.batch_size])
    memory = gradient.lower(params, first).compile().memory_analysis().temp_size_in_bytes
    rng = np.random.default_rng(options.seed)
    curve, times = [float(accuracy(params, test_data))], []
    progress = tqdm(range(options.epochs), desc=rule, unit="epoch")
    for _ in progress:
        start, loss = time.perf_counter(), 0.0
        order = rng.permutation(samples)[: updates * options.batch_size].reshape(updates, -1)
        for batch in order:
            value, grads = gradient(params, Data(train_data.streams[:, batch], train_data.labels[batch]))
            params, state = update(params, state, grads)
            loss += float(value) / updates
        times.append(time.perf_counter() - start)
        curve.append(float(accuracy(params, test_data)))
        progress.set_postfix(loss=f"{loss:.3f}", test=f"{100 * curve[-1]:.1f}%")
    return Run(params, curve, float(np.median(times)), memory)


def save_figure(path, runs, test_data):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (curves, image, raster) = plt.subplots(
        1, 3, figsize=(11, 3.4), width_ratios=(3, 1.2, 4), layout="constrained"
    )
    figure.get_layout_engine().set(wspace=0.05)
    for rule, run in runs.items():
        curves.plot([100 * a for a in run.accuracy], label=rule.upper())
    curves.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 100), title="Learning curves")
    curves.legend()

    rule, run = next(iter(runs.items()))
    digit = test_data.streams[:, :1]
    _, spikes = jax.jit(model)(run.params, digit)
    times, neurons = np.nonzero(np.asarray(spikes[:, 0]))
    hold = len(digit) // 64
    image.imshow(digit[::hold, 0, 0].reshape(8, 8), cmap="gray_r")
    image.set(title=f"a test digit: {test_data.labels[0]}", xticks=[], yticks=[])
    by_frequency = np.argsort(np.argsort(np.abs(run.params["hidden"]["neuron"]["omega"])))
    raster.scatter(times, by_frequency[neurons], s=3, marker="|", color="black")
    raster.set(
        xlabel="step", ylabel="neuron, by frequency", title=f"Its spikes after {rule.upper()}", xlim=(0, len(digit))
    )
    figure.savefig(path, dpi=150)


def main(arguments=None):
    options = parse_arguments(arguments)
    train_data, test_data = load_data(options.hold)
    params = init_params(jax.random.key(options.seed), options.neurons)
    runs = {rule: train(rule, params, train_data, test_data, options) for rule in options.rules}
    print(f"\n{'rule':<6}{'test accuracy':>15}{'s per epoch':>14}{'temporary memory':>19}")
    for rule, run in runs.items():
        print(f"{rule:<6}{100 * run.accuracy[-1]:>13.1f} %{run.seconds_per_epoch:>14.2f}{run.memory / 1e6:>16.1f} MB")
    save_figure(options.figure, runs, test_data)
    print(f"\nsaved {options.figure}")
    return runs


if __name__ == "__main__":
    main()
