"""What the examples share: one training function for classification of sequences or of their steps.

Several seeds train at once under `jax.vmap`, each with its own initialisation, validation split and order of
batches; the model of the lowest validation loss is tested. With a checkpoint folder a run that was
interrupted continues where it stopped.
"""

import argparse
import csv
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from checkpoints import Checkpoints
from tqdm import tqdm

import hyprjax as hj
from hyprjax.data import Dataset

RULES = ("bptt", "hypr", "hypr-segment", "hypr-online", "hypr-segment-online", "tbptt-online")
ONLINE_LENGTH = 50  # steps between updates unless something else is asked for
REPORTS = ("loss", "valid_loss", "valid_accuracy")


class Network(NamedTuple):
    """A stack of spiking layers and a readout."""

    cells: tuple[hj.Cell, ...]
    init: Callable[[jax.Array], Any]
    dropout: float = 0.0

    def logits(self, params, xs):
        """Readout `[T, B, classes]`; `xs["keys"]`, one key per step, drops spikes in training."""
        signal = xs["inputs"]
        for cell, layer in zip(self.cells, params, strict=True):
            last = cell is self.cells[-1]
            signal = hj.unroll(cell, layer, signal)
            if "keys" in xs and not last:
                keep = jax.vmap(lambda key, z: jax.random.bernoulli(key, 1 - self.dropout, z.shape))(xs["keys"], signal)
                signal = jnp.where(keep, signal / (1 - self.dropout), 0)
        return signal

    def losses(self, params, xs):
        """Cross entropy `[T, B]`, nothing at the steps that do not count."""
        losses = optax.softmax_cross_entropy_with_integer_labels(self.logits(params, xs), xs["targets"])
        return losses * xs["weights"]

    def loss(self, params, xs):
        """Its mean; what `jax.grad` and `hypr_grad` take."""
        return self.losses(params, xs).mean()


def stack(hidden, readout, sizes, *, weights=None, bias=True, recurrent=True, dropout=0.0):
    """A `Network` of recurrent `hidden` cells and a readout; `sizes` are inputs, neurons per layer, classes.

    `weights` draws those of the hidden layers instead of their cell.
    """
    cells = (*[hidden] * (len(sizes) - 2), readout)

    def init(key):
        layers = zip(jax.random.split(key, len(cells)), cells, sizes[:-1], sizes[1:], strict=True)
        of = {True: {"recurrent": recurrent, "weights": weights}, False: {}}
        return [hj.init_layer(k, cell, *shape, bias=bias, **of[cell is hidden]) for k, cell, *shape in layers]

    return Network(cells, init, dropout)


def value_and_grad(network, rule, segment_length=None):
    """The gradient of a network's loss by the rule's name."""
    if rule == "bptt":
        losses = hj.bptt(network.losses)
        return jax.value_and_grad(lambda params, xs: losses(params, xs).mean())
    credit = {"hypr": "none", "hypr-segment": "segment"}[rule]
    return hj.hypr_value_and_grad(network.loss, segment_length=segment_length, recurrent_credit=credit)


def learner(
    network: Network,
    rule: str,
    optimiser: optax.GradientTransformation,
    segment_length: int | None = None,
    project: bool = True,
):
    """How a rule learns from a batch: `(params, optimiser state, batch) -> (params, optimiser state, loss)`.

    The rules that end in "online" update after every segment, the others once. With `project`, an update ends with
    `hj.project`.
    """

    def update(params, state, grads):
        changes, state = optimiser.update(grads, state, params)
        params = optax.apply_updates(params, changes)
        return hj.project(network.cells, params) if project else params, state

    learn = _online if rule.endswith("online") else _offline
    return learn(network, rule, update, segment_length)


def _offline(network, rule, update, segment_length):
    gradient = value_and_grad(network, rule, segment_length)

    def learn(params, state, batch):
        loss, grads = gradient(params, batch)
        return *update(params, state, grads), loss

    return learn


def _online(network, rule, update, segment_length):
    """State (and traces) at rest at the start of the batch; the same segments for HYPR and truncated BPTT."""
    if rule.startswith("hypr"):
        credit = "segment" if rule == "hypr-segment-online" else "none"
        init, value_and_grad = hj.hypr_stream(network.loss, recurrent_credit=credit)
    else:
        init, apply = hj.stream(network.loss)

        def value_and_grad(params, carry, segment):
            (loss, carry), grads = jax.value_and_grad(apply, has_aux=True)(params, carry, segment)
            return (loss, grads), carry

    def learn(params, state, batch):
        steps = len(batch["inputs"])
        length = min(segment_length or ONLINE_LENGTH, steps)
        cut = lambda start, n: jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, n), batch)  # noqa: E731

        def learn_segment(learning, start, n=length):
            params, state, carry = learning
            (loss, grads), carry = value_and_grad(params, carry, cut(start, n))
            return (*update(params, state, grads), carry), loss

        learning = (params, state, init(params, cut(0, length)))
        learning, losses = jax.lax.scan(learn_segment, learning, length * jnp.arange(steps // length))
        loss = losses.sum() * length
        if rest := steps % length:
            learning, last = learn_segment(learning, steps - rest, rest)
            loss += last * rest
        params, state, _ = learning
        return params, state, loss / steps

    return learn


def updates_per_batch(rule: str, steps: int, segment_length: int | None) -> int:
    """How often a rule updates the parameters while it sees one batch."""
    return math.ceil(steps / (segment_length or ONLINE_LENGTH)) if rule.endswith("online") else 1


def make_batch(network: Network, dataset: Dataset, indices, key=None):
    """A batch as the network takes it; the weights of the steps that count have a mean of one."""
    batch = dataset.batch(indices)
    batch["weights"] = batch["mask"] / jnp.maximum(batch["mask"].mean(), 1e-9)
    if key is not None and network.dropout > 0:
        batch["keys"] = jax.random.split(key, dataset.steps)
    return batch


def evaluate(network: Network, params, dataset: Dataset, indices=None):
    """Mean loss, and the part of the steps (or, with one label per sequence, of the sequences) that is right."""

    def one(index):
        batch = make_batch(network, dataset, index[None])
        logits = network.logits(params, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        right = logits.argmax(-1) == batch["targets"]
        if dataset.targets.ndim == 1:
            votes = (jax.nn.softmax(logits) * batch["mask"][..., None]).sum(0)
            right = votes.argmax(-1) == batch["targets"]
        return (losses * batch["weights"]).mean(), (right * batch["weights"]).mean()

    indices = jnp.arange(dataset.size) if indices is None else indices
    losses, right = jax.lax.map(one, indices, batch_size=min(len(indices), 256))
    return losses.mean(), right.mean()


class Result(NamedTuple):
    """Of one run, the first axis of the arrays being seeds; those of `history` are `[epochs, seeds]`.

    Test and validation accuracy are those of the best-validation model, `last_accuracy` is the test accuracy of the
    last one.
    """

    test_accuracy: np.ndarray
    valid_accuracy: np.ndarray
    last_accuracy: np.ndarray
    history: dict[str, np.ndarray]
    seconds_per_epoch: float
    memory: int
    params: Any


def train(
    network: Network,
    train_data: Dataset,
    test_data: Dataset,
    *,
    rule: str,
    optimiser: Callable[[int], optax.GradientTransformation],
    seeds=(0,),
    epochs=10,
    batch_size=16,
    segment_length=None,
    average=0.0,
    project=True,
    validation=0.1,
    checkpoint: Path | None = None,
    options: dict[str, Any] | None = None,
    save_every=10,
) -> Result:
    """Trains one network per seed, all at once, and tests each one's best-validation model, or without any its last.

    `optimiser` makes an optimiser from the number of updates in all. `average` is the decay, per batch, of an average
    over the parameters; validated and tested is that average. `project` says whether an update ends with
    `hj.project`. Checkpoints are continued only by a run with the same settings; `options` are those that `network`,
    data and `optimiser` were made with.
    """
    train_data, test_data = jax.device_put((train_data, test_data))
    held_out = int(validation * train_data.size)
    batches = (train_data.size - held_out) // batch_size
    optimiser = optimiser(epochs * batches * updates_per_batch(rule, train_data.steps, segment_length))
    learn = learner(network, rule, optimiser, segment_length, project)

    def start(seed):
        key = jax.random.key(seed)
        params = network.init(jax.random.fold_in(key, 0))
        order = jax.random.permutation(jax.random.fold_in(key, 1), train_data.size)
        best = {"params": params, "loss": jnp.inf, "accuracy": 0.0}
        learning = {"params": params, "average": params, "optimiser": optimiser.init(params)}
        return learning | {"order": order, "best": best}

    def update(state, at_batch):
        params, averaged, optimiser_state = state
        indices, key = at_batch
        batch = make_batch(network, train_data, indices, key)
        params, optimiser_state, loss = learn(params, optimiser_state, batch)
        return (params, optax.incremental_update(params, averaged, 1 - average), optimiser_state), loss

    def epoch(seed, number, state):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 2), number)
        shuffled = jax.random.permutation(key, state["order"][held_out:])[: batches * batch_size]
        per_batch = shuffled.reshape(batches, batch_size), jax.random.split(key, batches)
        learning = state["params"], state["average"], state["optimiser"]
        (params, averaged, optimiser_state), losses = jax.lax.scan(update, learning, per_batch)
        valid_loss, valid_accuracy = -jnp.float32(number), jnp.nan  # nothing held out: the last model is the best
        if held_out:
            valid_loss, valid_accuracy = evaluate(network, averaged, train_data, state["order"][:held_out])
        new = {"params": averaged, "loss": valid_loss, "accuracy": valid_accuracy}
        best = jax.tree.map(lambda a, b: jnp.where(valid_loss < state["best"]["loss"], a, b), new, state["best"])
        report = {"loss": losses.mean(), "valid_loss": valid_loss, "valid_accuracy": valid_accuracy}
        learning = {"params": params, "average": averaged, "optimiser": optimiser_state}
        return {**state, **learning, "best": best}, report

    seeds = jnp.asarray(seeds)
    state = jax.jit(jax.vmap(start))(seeds)
    compiled = jax.jit(jax.vmap(epoch, in_axes=(0, None, 0))).lower(seeds, jnp.int32(0), state).compile()
    history = {name: np.full((epochs, len(seeds)), np.nan, np.float32) for name in REPORTS}
    run = {"state": state, "history": history, "seconds": np.full(epochs, np.nan)}
    settings = {"rule": rule, "seeds": seeds.tolist(), "epochs": epochs, "batch_size": batch_size}
    settings |= {"segment_length": segment_length, "average": average, "project": project} | (options or {})
    saved = Checkpoints(checkpoint, settings) if checkpoint else None
    first = 0
    if saved and (found := saved.restore(run)):
        first, run = found
        run |= jax.tree.map(np.array, {"history": run["history"], "seconds": run["seconds"]})
    progress = tqdm(range(first, epochs), desc=rule, unit="epoch", initial=first, total=epochs)
    for number in progress:
        begin = time.perf_counter()
        run["state"], report = jax.block_until_ready(compiled(seeds, jnp.int32(number), run["state"]))
        run["seconds"][number] = time.perf_counter() - begin
        for name, values in report.items():
            run["history"][name][number] = values
        progress.set_postfix(loss=f"{report['loss'].mean():.3f}", valid=f"{100 * report['valid_accuracy'].mean():.1f}%")
        if saved and ((number + 1) % save_every == 0 or number + 1 == epochs):
            saved.save(number + 1, run)
    best = run["state"]["best"]
    test = jax.jit(jax.vmap(lambda params: evaluate(network, params, test_data)[1]))
    batch = jax.eval_shape(lambda: make_batch(network, train_data, np.arange(batch_size), jax.random.key(0)))
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    optimiser_shapes = jax.eval_shape(optimiser.init, shapes)
    memory = jax.jit(learn).lower(shapes, optimiser_shapes, batch).compile().memory_analysis().temp_size_in_bytes
    return Result(
        np.asarray(test(best["params"])),
        np.asarray(best["accuracy"]),
        np.asarray(test(run["state"]["average"])),
        run["history"],
        float(np.median(run["seconds"])),
        memory,
        best["params"],
    )


# --- command line and results ---------------------------------------------------------------------


def parser(doc: str, **defaults) -> argparse.ArgumentParser:
    """The options that all examples have."""
    result = argparse.ArgumentParser(
        description=doc.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    result.add_argument("--rules", nargs="+", choices=RULES, default=["bptt", "hypr"], help="what to train with")
    result.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="trained at once")
    result.add_argument("--epochs", type=int, help="passes over the training data")
    result.add_argument("--segment-length", type=int, help="steps per segment; of the online rules: per update")
    result.add_argument(
        "--average", type=float, default=0.0, help="decay per batch of the average of parameters tested"
    )
    add_project(result)
    result.add_argument("--validation", type=float, default=0.1, help="part of the training data held out; 0: none")
    result.add_argument("--checkpoints", type=Path, default=None, help="folder to save to and resume from")
    result.add_argument("--out", type=Path, default=None, help="CSV file to append the results to")
    result.set_defaults(**defaults)
    return result


def add_project(parser: argparse.ArgumentParser):
    """The option `--project`, on by default."""
    text = "put neuron parameters back where their model is defined after every update"
    parser.add_argument("--project", action=argparse.BooleanOptionalAction, default=True, help=text)


def run(task: str, cell: str, network, data, optimiser, options, **settings) -> dict[str, Result]:
    """Trains with every rule asked for, prints the table and appends to the CSV file."""
    results = {}
    of_run = {name: value for name, value in vars(options).items() if name not in ("rules", "checkpoints", "out")}
    for rule in options.rules:
        name = f"{task}-{cell}-{rule}-{options.segment_length}-{'-'.join(map(str, options.seeds))}"
        folder = options.checkpoints / name if options.checkpoints else None
        results[rule] = train(
            network,
            *data,
            rule=rule,
            optimiser=optimiser,
            seeds=options.seeds,
            epochs=options.epochs,
            segment_length=options.segment_length,
            average=options.average,
            project=options.project,
            validation=options.validation,
            checkpoint=folder,
            options=of_run,
            **settings,
        )
        if options.out:
            _append(options.out, task, cell, rule, options, results[rule])
    print(f"\n{task}, {cell}, seeds {options.seeds}\n{'rule':<14}{'test accuracy':>18}{'s/epoch':>10}{'memory':>12}")
    for rule, result in results.items():
        accuracy = 100 * result.test_accuracy
        spread = f"{accuracy.mean():.2f} ± {accuracy.std(ddof=1 if len(accuracy) > 1 else 0):.2f} %"
        print(f"{rule:<14}{spread:>18}{result.seconds_per_epoch:>10.2f}{result.memory / 1e6:>9.1f} MB")
    return results


def _append(path: Path, task, cell, rule, options, result: Result):
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            columns = "task neuron rule segment_length seed epochs test_accuracy valid_accuracy seconds_per_epoch"
            writer.writerow([*columns.split(), "seeds_at_once", "memory_mb", "commit", "command", "last_accuracy"])
        command = shlex.join(["python", f"examples/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        accuracies = result.test_accuracy, result.valid_accuracy, result.last_accuracy
        for seed, test, valid, last in zip(options.seeds, *accuracies, strict=True):
            length = options.segment_length or "default"
            cost = [
                f"{result.seconds_per_epoch:.3f}",
                len(options.seeds),
                f"{result.memory / 1e6:.1f}",
                commit,
                command,
            ]
            accuracy = [f"{value:.5f}" for value in (test, valid, last)]
            writer.writerow([task, cell, rule, length, seed, options.epochs, *accuracy[:2], *cost, accuracy[2]])
