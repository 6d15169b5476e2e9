"""What the examples have around the learning: options, progress, tables and pictures, by default in `out`."""

import argparse
import csv
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import jax
import matplotlib
import numpy as np
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUT = Path("out")  # git ignores it


def parser(doc: str) -> argparse.ArgumentParser:
    """With the first line of a docstring as the description, and defaults in the help."""
    first = doc.splitlines()[0]
    return argparse.ArgumentParser(description=first, formatter_class=argparse.ArgumentDefaultsHelpFormatter)


def gated_options(doc: str, cells: Iterable[str], rules: list[str]) -> argparse.ArgumentParser:
    result = parser(doc)
    result.add_argument("--cells", nargs="+", choices=cells, default=list(cells), help="gated layers")
    result.add_argument("--rules", nargs="+", choices=rules, default=rules, help="what to train with")
    result.add_argument("--batches", type=int, default=100, help="batches to learn from")
    result.add_argument("--batch-size", type=int, default=64, help="sequences in a batch")
    result.add_argument("--segment-length", type=int, default=10, help="steps per segment, and per update online")
    result.add_argument("--learning-rate", type=float, default=0.01, help="of Adam")
    result.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of parameters and data")
    result.add_argument("--out", type=Path, default=OUT / "gated.csv", help="where to save the accuracies")
    return result


def stream_options(doc: str) -> argparse.ArgumentParser:
    result = parser(doc)
    result.add_argument("--steps", type=int, default=1_000_000, help="time steps")
    result.add_argument("--segment-length", type=int, default=10, help="steps per update")
    result.add_argument("--regime", type=int, default=100_000, help="steps between drifts")
    result.add_argument("--lag", type=int, default=50, help="how many steps ago")
    result.add_argument("--source", choices=["auto", "ecg", "synthetic"], default="auto", help="see Process")
    result.add_argument("--seed", type=int, default=0, help="of the parameters")
    result.add_argument("--checkpoints", type=Path, help="folder to save to")
    result.add_argument("--save-every", type=int, default=5000, help="segments between checkpoints")
    result.add_argument("--resume", action="store_true", help="continue the run in the folder")
    result.add_argument("--figure", type=Path, default=OUT / "stream.png", help="where to save the picture")
    return result


class Progress:
    """The segments of `stream` from `begin` on, with a bar that shows the loss; `losses` is filled on the way.

    Attributes:
      memory: peak of the process in MB, after 200 segments and before the last.
      clock: `(segment, seconds)` at every tenth of the segments and at the last.
    """

    def __init__(self, begin: int, losses: np.ndarray):
        self.begin, self.losses = begin, losses
        self.memory: list[float] = []
        self.clock: list[tuple[int, float]] = []

    def __iter__(self):
        import resource  # there is none on Windows

        total = len(self.losses)
        bar = tqdm(range(self.begin, total), initial=self.begin, total=total, unit="segment", smoothing=0.01)
        for index in bar:
            if index % 50 == 0 and index:
                bar.set_postfix(loss=f"{self.losses[max(0, index - 100) : index].mean():.3f}")
            if index % max(1, total // 10) == 0 or index + 1 == total:
                self.clock.append((index, time.perf_counter()))
            if index in (self.begin + 200, total - 1):
                self.memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
            yield index


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable]):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def save(figure, path: Path):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    print(f"saved {path}")


def digits(path: Path, runs: dict, model: Callable, test: dict):
    """The table of the runs by rule, their learning curves, and what the network of the first does with a digit."""
    print(f"\n{'rule':<6}{'test accuracy':>15}{'s per epoch':>14}{'temporary memory':>19}")
    for rule, run in runs.items():
        print(f"{rule:<6}{100 * run.accuracy[-1]:>13.1f} %{run.seconds_per_epoch:>14.2f}{run.memory / 1e6:>16.1f} MB")
    shape = {"figsize": (11, 3.4), "width_ratios": (3, 1.2, 4), "layout": "constrained"}
    figure, (curves, image, raster) = plt.subplots(1, 3, **shape)
    figure.get_layout_engine().set(wspace=0.05)
    for rule, run in runs.items():
        curves.plot([100 * a for a in run.accuracy], label=rule.upper())
    curves.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 100), title="Learning curves")
    curves.legend()

    rule, run = next(iter(runs.items()))
    digit = test["inputs"][:, :1]
    _, spikes = jax.jit(model)(run.params, digit)
    times, neurons = np.nonzero(np.asarray(spikes[:, 0]))
    hold = len(digit) // 64
    image.imshow(digit[::hold, 0, 0].reshape(8, 8), cmap="gray_r")
    image.set(title=f"a test digit: {test['targets'][0, 0]}", xticks=[], yticks=[])
    by_frequency = np.argsort(np.argsort(np.abs(run.params["hidden"]["neuron"]["omega"])))
    raster.scatter(times, by_frequency[neurons], s=3, marker="|", color="black")
    title = f"Its spikes after {rule.upper()}"
    raster.set(xlabel="step", ylabel="neuron, by frequency", title=title, xlim=(0, len(digit)))
    save(figure, path)


def gated(path: Path, options, rows: list[dict]):
    """Test accuracy over batches, by rule, and the last ones as a table."""
    every = max(1, options.batches // 10)
    table = [
        (row["cell"], row["rule"], row["seed"], every * tenth, f"{accuracy:.4f}")
        for row in rows
        for tenth, accuracy in enumerate(row["accuracy"], 1)
    ]
    write_csv(path, ("cell", "rule", "seed", "batches", "test_accuracy"), table)
    shape = {"ncols": len(options.cells), "squeeze": False, "sharey": True}
    figure, axes = plt.subplots(**shape, figsize=(10, 3.4), layout="constrained")
    for ax, cell in zip(axes[0], options.cells, strict=True):
        for rule in options.rules:
            curves = np.array([row["accuracy"] for row in rows if (row["cell"], row["rule"]) == (cell, rule)])
            ax.plot(every * (1 + np.arange(curves.shape[1])), 100 * curves.mean(0), marker="o", ms=3, label=rule)
            last = ", ".join(f"{100 * accuracy:.1f}" for accuracy in curves[:, -1])
            print(f"{cell:<6}{rule:<14}{100 * curves[:, -1].mean():.1f} % ({last})")
        ax.set(title=cell, xlabel="batches", ylim=(20, 102))
    axes[0, 0].set_ylabel("test accuracy (%)")
    axes[0, 0].legend()
    save(figure, path.with_suffix(".png"))


def tmaze(path: Path, rows: list[tuple], names: dict[str, str]):
    """Turns to the right side over steps, a curve a seed."""
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    for colour, rule in enumerate(dict.fromkeys(row[0] for row in rows)):
        for first, seed in enumerate(dict.fromkeys(row[1] for row in rows if row[0] == rule)):
            steps, right = zip(*[row[2:] for row in rows if row[:2] == (rule, seed)], strict=True)
            axes.plot(steps, 100 * np.array(right), f"C{colour}", lw=1.3, label=None if first else names[rule])
    axes.axhline(50, color="gray", lw=0.7, ls=":")
    axes.set(xlabel="steps", ylabel="turns to the right side, %", ylim=(35, 102))
    axes.legend(loc="lower right")
    save(figure, path)


def long(path: Path, rows: list[tuple]):
    """Memory and speed over the length of the sequence, by rule."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axes, column, label in zip(both, (2, 3), ("temporary memory, MB", "steps per second"), strict=True):
        for colour, rule in zip(("black", "gray", "C2", "C0"), dict.fromkeys(row[0] for row in rows), strict=True):
            points = [(row[1], float(row[column])) for row in rows if row[0] == rule and row[column]]
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", ms=4, label=rule)
        axes.set(xscale="log", xlabel="steps T", ylabel=label)
    both[0].set_yscale("log")
    both[1].set_ylim(0)
    both[1].legend(fontsize=8, loc="lower center")
    save(figure, path)


def conv_mnist(path: Path, losses: dict[str, list[float]], accuracy: dict[str, float], passes: int, spikes):
    """Training loss by rule, and the spikes `[height, width, 8]` of the first layer for an image."""
    figure, (curves, maps) = plt.subplots(1, 2, figsize=(10, 3.4), width_ratios=(3, 2), layout="constrained")
    for rule, values in losses.items():
        means = [part.mean() for part in np.array_split(values, min(25, len(values)))]
        curves.semilogy(np.linspace(0, passes, len(means)), means, label=f"{rule}: {100 * accuracy[rule]:.1f} %")
    curves.set(xlabel="pass", ylabel="cross entropy", title="Training loss, and test accuracy at the end")
    curves.legend()
    maps.imshow(np.block([[*np.moveaxis(spikes[..., i : i + 4], -1, 0)] for i in (0, 4)]))
    maps.set(title="Spikes of the first layer's 8 channels", xticks=[], yticks=[])
    save(figure, path)


def stream(options, losses_of: dict[str, np.ndarray], skipped: dict[str, int], progress: Progress):
    """The table of a run, and its picture."""
    length, per_regime = options.segment_length, options.regime // options.segment_length
    print(f"\nmean squared error after the first drift, {len(losses_of['hypr']) * length:,} steps")
    for name, losses in losses_of.items():
        print(f"  {name:<16}{np.nanmean(losses[per_regime:]):.4f}" if len(losses) > per_regime else f"  {name:<16}-")
    print("segments left out because they were not finite: " + ", ".join(f"{r} {n}" for r, n in skipped.items()))
    if len(progress.memory) == 2:
        print("peak memory {:.0f} MB after 200 segments, {:.0f} MB at the end".format(*progress.memory))
    if len(progress.clock) > 3:
        pace = [length * (b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(progress.clock)]
        print(f"steps per second: {pace[1]:.0f} in the second tenth, {pace[-1]:.0f} in the last")
    _stream_figure(options.figure, losses_of, length, per_regime)


def _stream_figure(path: Path, losses_of: dict[str, np.ndarray], length: int, per_regime: int):
    """The error of each learner over all steps, and around a drift."""
    figure, axes = plt.subplots(2, 1, figsize=(10, 6), layout="constrained")
    window = max(1, min(100, per_regime // 10))
    before, after, smoothing = per_regime // 50, per_regime // 20, max(1, per_regime // 400)
    for name, losses in losses_of.items():
        smooth = np.convolve(losses, np.ones(window) / window, "valid")
        axes[0].plot((np.arange(len(smooth)) + window) * length, smooth, lw=1, label=name)
        drifts = [losses[d - before : d + after] for d in range(per_regime, len(losses) - after + 1, per_regime)]
        if drifts:
            mean = np.convolve(np.mean(drifts, 0), np.ones(smoothing) / smoothing, "valid")
            axes[1].plot((np.arange(len(mean)) + smoothing - before) * length, mean, lw=1, label=name)
    for drift in range(per_regime, len(losses), per_regime):
        axes[0].axvline(drift * length, color="gray", lw=0.5)
    axes[1].axvline(0, color="gray", lw=0.5)
    same = {"ylabel": "mean squared error", "yscale": "log"}
    axes[0].set(xlabel="step", title="error; gray lines: drifts", **same)
    axes[1].set(xlabel="steps after a drift", title="around a drift, mean of all", **same)
    axes[1].set_visible(len(losses) > per_regime + after)  # a run too short has no drift
    axes[0].legend(ncols=3, fontsize=8)
    save(figure, path)
