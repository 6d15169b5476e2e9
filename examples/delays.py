"""Store and recall: which of four symbols was it, 100 to 2,000 steps ago? Four neuron models, online.

A symbol for 20 steps, a delay, the signal to answer for 20 steps, and background noise all the time; an update every 20
steps, so that symbol and answer never lie in one segment. Slow time constants are drawn from 20 to 2,000 steps.
Needs the extra `examples`. Run it:

    python examples/delays.py --cells alif brf --delays 100 500
"""

import jax
import numpy as np
import optax
import training

import hyprjax as hj
import hyprjax.data

SYMBOLS, GROUP, RATE, NOISE = 4, 5, 0.4, 0.02  # spike probabilities per step
SHOWN, NEURONS = 20, 64  # steps of the symbol and of the answer
SLOWEST = 2000.0


def damping(key, shape):
    """An initializer: damping offsets of oscillations that last 20 to 2,000 steps."""
    return 100.0 / jax.random.uniform(key, shape, minval=20.0, maxval=SLOWEST)


CELLS = {  # neuron model, learning rate
    "lif": (hj.lif(tau=20.0), 3e-3),
    "alif": (hj.alif(tau=20.0, tau_a=(20.0, SLOWEST)), 3e-3),
    "se_adlif": (hj.se_adlif(tau_w=(20.0, SLOWEST)), 3e-3),
    "brf": (hj.brf(omega=(3.0, 10.0), b_offset=damping), 1e-2),
}


def store_recall(n, delay, seed):
    """Five channels a symbol, five for the signal to answer."""
    rng = np.random.default_rng(seed)
    steps = SHOWN + delay + SHOWN
    symbol, time = rng.integers(SYMBOLS, size=n), np.arange(steps)[:, None]
    groups = np.zeros((steps, n, SYMBOLS + 1), bool)
    groups[:SHOWN, np.arange(n), symbol] = True
    groups[-SHOWN:, :, -1] = True
    rates = np.repeat(np.where(groups, RATE, NOISE), GROUP, axis=-1)
    answer = np.broadcast_to(time >= SHOWN + delay, (steps, n))
    return hj.data.Dataset(rng.random(rates.shape) < rates, symbol.astype(np.int32), answer)


def main(arguments=None):
    parser = training.parser(__doc__, rules=["hypr-online", "tbptt-online"], epochs=20, segment_length=20)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=list(CELLS), help="neuron models")
    parser.add_argument("--delays", nargs="+", type=int, default=[100, 200, 500, 1000, 2000], help="in steps")
    parser.add_argument("--sequences", type=int, default=640, help="to learn from; 256 test")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences that are seen at once")
    options = parser.parse_args(arguments)
    for name in options.cells:
        cell, learning_rate = CELLS[name]
        sizes = (GROUP * (SYMBOLS + 1), NEURONS, SYMBOLS)
        network = training.stack(cell, hj.leaky_integrator(tau=10.0), sizes)

        def optimiser(updates, learning_rate=learning_rate):
            schedule = optax.linear_schedule(learning_rate, 0.0, updates)
            return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

        for delay in options.delays:
            data = store_recall(options.sequences, delay, 0), store_recall(256, delay, 1)
            task = f"recall after {delay}"
            training.run(task, name, network, data, optimiser, options, batch_size=options.batch_size)


if __name__ == "__main__":
    main()
