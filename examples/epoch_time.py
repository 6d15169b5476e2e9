"""Seconds per epoch on ECG-QTDB: BPTT at several batch sizes, HYPR and truncated BPTT at several steps between updates.

All of them in one process and by turns, so that they can be compared; one network, the BRF one of `ecg.py`. Needs the
data set (see `hyprjax.data.ecg_qtdb`) and the extra `examples`. Run it:

    python examples/epoch_time.py
"""

import time
from pathlib import Path

import ecg
import jax
import numpy as np
import outputs
import training

import hyprjax.data

ONLINE = [10, 25, 50, 100, 260]  # steps between updates, at a batch of 8
WAYS = [("bptt", batch, None) for batch in (16, 8, 4, 2)]
WAYS += [(rule, 8, length) for rule in ("hypr-segment-online", "tbptt-online") for length in ONLINE]


def make_epoch(rule, batch_size, length, data):
    """`(params, optimiser state, order of recordings) -> (params, optimiser state)`, compiled, and where it starts."""
    network, make_optimiser, _ = ecg.brf()
    batches = data.size // batch_size
    optimiser = make_optimiser(40 * batches * training.updates_per_batch(rule, data.steps, length))
    learn = training.learner(network, rule, optimiser, length, project=False)

    @jax.jit
    def epoch(params, state, order):
        def update(learning, indices):
            params, state, loss = learn(*learning, training.make_batch(network, data, indices))
            return (params, state), loss

        return jax.lax.scan(update, (params, state), order[: batches * batch_size].reshape(batches, batch_size))[0]

    params = network.init(jax.random.key(0))
    return epoch, (params, optimiser.init(params))


def main(arguments=None):
    parser = outputs.parser(__doc__)
    parser.add_argument("--times", type=int, default=3, help="epochs that are timed of each, after one that is not")
    parser.add_argument("--out", type=Path, default=outputs.OUT / "ecg_time.csv", help="where to save the medians")
    options = parser.parse_args(arguments)
    data = jax.device_put(hyprjax.data.ecg_qtdb()[0])
    epochs, seconds = {way: make_epoch(*way, data) for way in WAYS}, {way: [] for way in WAYS}
    for number in range(options.times + 1):
        order = np.random.default_rng(number).permutation(data.size)
        for way, (epoch, learning) in epochs.items():
            begin = time.perf_counter()
            epochs[way] = epoch, jax.block_until_ready(epoch(*learning, order))
            if number:
                seconds[way].append(time.perf_counter() - begin)
    rows = [(r, batch, length or "default", f"{np.median(seconds[r, batch, length]):.3f}") for r, batch, length in WAYS]
    for row in rows:
        print("{:<20} batch {:>2}, segments of {:>7}: {} s".format(*row))
    outputs.write_csv(options.out, ("rule", "batch", "segment_length", "seconds"), rows)


if __name__ == "__main__":
    main()
