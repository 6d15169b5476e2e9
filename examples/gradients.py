"""How near is HYPR's gradient to BPTT's, while the network learns? The cosine between them, on ECG-QTDB.

A network is trained with HYPR as in `ecg.py`; every few epochs the gradients of both rules are compared on the same
parameters and batch, for the hidden layer's parameters and for several segment lengths. Run it:

    python examples/gradients.py --cell brf --epochs 40
"""

import csv
from pathlib import Path

import ecg
import jax
import jax.numpy as jnp
import optax
import outputs
import training
from tqdm import tqdm

import hyprjax.data


def cosine(a, b):
    """Between two pytrees taken as vectors."""
    return optax.tree.vdot(a, b) / (optax.tree.norm(a) * optax.tree.norm(b) + 1e-30)


def main(arguments=None):
    parser = outputs.parser(__doc__)
    parser.add_argument("--cell", choices=ecg.SETUPS, default="brf", help="neuron model")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training data")
    parser.add_argument("--every", type=int, default=4, help="epochs between comparisons")
    parser.add_argument("--segment-lengths", nargs="+", type=int, default=[1, 10, 50, 100, 260, 1300], help="of HYPR")
    training.add_project(parser)
    parser.add_argument("--seed", type=int, default=0, help="of parameters and batches")
    parser.add_argument("--out", type=Path, default=outputs.OUT / "gradients.csv", help="CSV file to append to")
    options = parser.parse_args(arguments)
    data, _ = hyprjax.data.ecg_qtdb()
    network, make_optimiser, batch_size = ecg.SETUPS[options.cell]()
    network = network._replace(dropout=0.0)
    batches = data.size // batch_size
    optimiser = make_optimiser(options.epochs * batches)
    rules = {("bptt", data.steps): training.value_and_grad(network, "bptt")}
    for rule in ("hypr", "hypr-segment"):
        for length in options.segment_lengths:
            if (rule, length) != ("hypr-segment", 1):  # the same as hypr at 1
                rules[rule, length] = training.value_and_grad(network, rule, length)

    @jax.jit
    def compare(params, batch):
        grads = {key: rule(params, batch)[1][:-1] for key, rule in rules.items()}
        exact = grads["bptt", data.steps]
        return [cosine(grad, exact) for grad in grads.values()]

    learn = jax.jit(training.learner(network, "hypr", optimiser, project=options.project))
    params = network.init(jax.random.key(options.seed))
    state, data = optimiser.init(params), jax.device_put(data)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    new = not options.out.exists()
    with options.out.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(["neuron", "seed", "epoch", "rule", "segment_length", "cosine"])
        for epoch in tqdm(range(options.epochs + 1), desc=options.cell, unit="epoch"):
            if epoch % options.every == 0:
                batch = training.make_batch(network, data, jnp.arange(batch_size))
                for (rule, length), value in zip(rules, compare(params, batch), strict=True):
                    writer.writerow([options.cell, options.seed, epoch, rule, length, f"{float(value):.5f}"])
                file.flush()
            key = jax.random.fold_in(jax.random.key(options.seed), epoch)
            order = jax.random.permutation(key, data.size)[: batches * batch_size]
            for indices in order.reshape(batches, batch_size):
                params, state, _ = learn(params, state, training.make_batch(network, data, indices))


if __name__ == "__main__":
    main()
