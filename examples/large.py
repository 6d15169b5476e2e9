"""A recurrent network of 10,000 adaptive neurons, learning on one CPU with factored traces.

Its full traces would be 16 · 10,009 · 10,000 · 2 numbers, 13 GB; the factored ones are 2.6 MB. Handwritten digits are
shown row by row, eight steps a row. Needs the extra `examples` and 5 GB of memory. Run it:

    python examples/large.py
"""

import resource
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import outputs

import hyprjax as hj
import hyprjax.data

CELL, READOUT = hj.alif(tau=10.0, tau_a=50.0), hj.leaky_integrator(tau=10.0)
CELLS = {"hidden": CELL, "readout": READOUT}
HOLD, BATCH = 8, 16


def rows_of(dataset):
    """Inputs `[64, N, 8]`: each row of the digits for eight steps, and labels."""
    pixels = np.asarray(dataset.inputs)[..., 0].reshape(8, 8, -1).transpose(0, 2, 1)
    return np.repeat(pixels, HOLD, axis=0).astype(np.float32), np.asarray(dataset.targets)


def init(key, neurons):
    k1, k2 = jax.random.split(key)
    hidden = hj.init_layer(k1, CELL, 8, neurons, recurrent=True)
    return {"hidden": hidden, "readout": hj.init_layer(k2, READOUT, neurons, 10)}


def logits(params, inputs):
    return hj.unroll(READOUT, params["readout"], hj.unroll(CELL, params["hidden"], inputs))


def loss_fn(params, xs):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, xs["inputs"]), xs["labels"])
    return (losses * xs["late"][:, None]).mean()


@jax.jit
def accuracy(params, inputs, labels):
    votes = jax.nn.log_softmax(logits(params, inputs))[-2 * HOLD :].sum(0)
    return (votes.argmax(-1) == labels).mean()


def main(arguments=None):
    parser = outputs.parser(__doc__)
    parser.add_argument("--neurons", type=int, default=10_000, help="recurrent neurons")
    parser.add_argument("--updates", type=int, default=60, help="batches of 16 digits to learn from")
    parser.add_argument("--segment-length", type=int, default=16, help="steps per segment, of 64")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="of Adam")
    parser.add_argument("--out", type=Path, default=None, help="CSV file for loss and accuracy")
    options = parser.parse_args(arguments)

    (inputs, labels), (test_inputs, test_labels) = map(rows_of, hj.data.digits(hold=1))
    late = (np.arange(len(inputs)) >= len(inputs) - 2 * HOLD).astype(np.float32)
    gradient = hj.hypr_value_and_grad(loss_fn, segment_length=options.segment_length, traces="factored")
    optimiser = optax.adam(options.learning_rate)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, xs):
        loss, grads = gradient(params, xs)
        changes, state = optimiser.update(grads, state)
        return hj.project(CELLS, optax.apply_updates(params, changes)), state, loss

    params = init(jax.random.key(0), options.neurons)
    state, rng, rows = optimiser.init(params), np.random.default_rng(0), []
    begin = time.perf_counter()
    for number in range(1, options.updates + 1):
        batch = rng.choice(len(labels), BATCH, replace=False)
        every_step = np.broadcast_to(labels[batch], (len(inputs), BATCH))
        xs = {"inputs": inputs[:, batch], "labels": every_step, "late": late / late.mean()}
        params, state, loss = update(params, state, xs)
        if number % 10 == 0 or number == options.updates:
            right = float(accuracy(params, test_inputs, test_labels))
            seconds = (time.perf_counter() - begin) / number
            print(f"update {number}: loss {loss:.3f}, test accuracy {100 * right:.1f} %, {seconds:.1f} s per update")
            rows.append([options.neurons, number, f"{float(loss):.4f}", f"{right:.4f}"])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory of the process {memory:.1f} GB")
    if options.out:
        outputs.write_csv(options.out, ("neurons", "update", "loss", "test_accuracy"), rows)
    return rows


if __name__ == "__main__":
    main()
