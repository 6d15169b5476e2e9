"""The pictures and the tables of docs/results.md, from the CSV files beside it.

python docs/results_figure.py docs
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator

NAMES = {"bptt": "BPTT", "hypr": "HYPR", "hypr-segment": "HYPR, segment credit"}
NAMES |= {"hypr-segment-online": "HYPR online", "hypr-online": "HYPR online, no segment credit"}
NAMES |= {"tbptt-online": "truncated BPTT online"}
COLOURS = {"bptt": "black", "hypr": "C0", "hypr-segment": "C1"}
COLOURS |= {"hypr-segment-online": "C0", "hypr-online": "C2", "tbptt-online": "C1"}


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def group(rows, *names):
    """Rows by the values of some columns, in the order in which they come."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names)].append(row)
    return groups


def option(row, name, default):
    """The value of a command-line option in the command that made a row."""
    _, given, rest = row["command"].partition(f"--{name} ")
    return rest.split()[0] if given else default


def accuracy(rows, of="test_accuracy"):
    """Accuracy in percent: mean and standard deviation over seeds."""
    values = 100 * np.array([float(row[of]) for row in rows])
    return values.mean(), values.std(ddof=1) if len(values) > 1 else 0.0


def table(rows):
    """Markdown: task x neuron x rule."""
    lines = [
        "| task | neuron | rule | test accuracy, % | gap to BPTT | seeds | s/epoch | memory, MB | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups = group(rows, "task", "neuron", "rule")
    for (task, neuron, rule), own in groups.items():
        mean, deviation = accuracy(own)
        exact = groups.get((task, neuron, "bptt"))
        gap = f"{accuracy(exact)[0] - mean:.2f}" if exact and rule != "bptt" else "-"
        seeds = ", ".join(row["seed"] for row in own)
        first = own[0]
        cell, _, layers = neuron.partition("x")
        network = f"`{cell}`" + (f", {layers} layers" if layers == "2" else "")
        lines.append(
            f"| {task} | {network} | {NAMES[rule]} | {mean:.2f} ± {deviation:.2f} | {gap} | {seeds} "
            f"| {float(first['seconds_per_epoch']):.1f} | {first['memory_mb']} | {first['commit']} |"
        )
    return "\n".join(lines)


def tuning_table(rows):
    """Markdown: rule x learning rate x segment length."""
    lines = [
        "| rule | learning rate | λ | validation accuracy, % | test accuracy, % | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        row["rate"] = option(row, "learning-rate", "0.1")
    for (rule, rate, length), own in sorted(group(rows, "rule", "rate", "segment_length").items()):
        valid, test = (accuracy(own, of) for of in ("valid_accuracy", "test_accuracy"))
        length = "-" if rule == "bptt" else length.replace("default", "260, the default")
        lines.append(
            f"| {NAMES[rule]} | {rate} | {length} | {valid[0]:.2f} ± {valid[1]:.2f} | {test[0]:.2f} ± {test[1]:.2f} "
            f"| {', '.join(row['seed'] for row in own)} |"
        )
    return "\n".join(lines)


def projection_table(rows):
    """Markdown: rule x with and without `hj.project`."""
    lines = [
        "| rule | `hj.project` | validation accuracy, % | test accuracy, % | test, last epoch, % | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        row["project"] = "no" if "--no-project" in row["command"] else "yes"
    for (rule, project), own in sorted(group(rows, "rule", "project").items()):
        parts = [accuracy(own, f"{of}_accuracy") for of in ("valid", "test", "last")]
        numbers = " | ".join(f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in parts)
        lines.append(f"| {NAMES[rule]} | {project} | {numbers} | {', '.join(row['seed'] for row in own)} |")
    return "\n".join(lines)


def segment_length_figure(rows, path):
    """Accuracy against segment length on ECG, for both settings of recurrent credit."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    lengths = sorted({int(row["segment_length"]) for row in rows if row["rule"] != "bptt"})
    for (rule,), own in group(rows, "rule").items():
        points = sorted((int(length), *accuracy(of)) for (length,), of in group(own, "segment_length").items())
        x, mean, deviation = map(np.array, zip(*points, strict=True))
        if rule == "bptt":
            axes.axhline(mean[0], color="black", lw=1, label=NAMES[rule])
            axes.axhspan(mean[0] - deviation[0], mean[0] + deviation[0], color="black", alpha=0.1, lw=0)
        else:
            axes.errorbar(x, mean, deviation, color=COLOURS[rule], marker="o", ms=4, capsize=2, label=NAMES[rule])
    axes.set(xscale="log", xlabel="segment length λ", ylabel="test accuracy, %", title="ECG-QTDB, 36 BRF neurons")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def online_table(rows):
    """Markdown: rule x batch size x steps per update."""
    lines = [
        "| neuron | rule | batch | update every | test accuracy, % | last epoch, % | seeds | s/epoch | memory, MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        row["batch"] = option(row, "batch-size", "64" if row["neuron"] == "se_adlif" else "16")
    for (neuron, rule, batch, length), own in group(rows, "neuron", "rule", "batch", "segment_length").items():
        parts = " | ".join("{:.2f} ± {:.2f}".format(*accuracy(own, of)) for of in ("test_accuracy", "last_accuracy"))
        every = "sequence" if rule == "bptt" else f"{length} steps"
        seconds, first = max(float(row["seconds_per_epoch"]) for row in own), own[0]
        cost = f"{len(own)} | {seconds:.1f} | {first['memory_mb']}"
        lines.append(f"| `{neuron}` | {NAMES[rule]} | {batch} | {every} | {parts} | {cost} |")
    return "\n".join(lines)


def online_figure(rows, maze, path):
    """Accuracy against the interval between updates on ECG, and the T-maze."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    own = [row for row in rows if row["neuron"] == "brf" and option(row, "batch-size", "16") == "8"]
    for (rule,), of_rule in group(own, "rule").items():
        of_length = {length: (*accuracy(of), len(of)) for (length,), of in group(of_rule, "segment_length").items()}
        points = sorted((0 if rule == "bptt" else int(length), *of) for length, of in of_length.items())
        x, mean, deviation, seeds = map(np.array, zip(*points, strict=True))
        error = deviation / np.sqrt(seeds)
        if rule == "bptt":
            left.axhline(mean[0], color="black", lw=1, label="BPTT, an update a batch")
            left.axhspan(mean[0] - error[0], mean[0] + error[0], color="black", alpha=0.1, lw=0)
        elif rule != "hypr-online":
            left.errorbar(x, mean, error, color=COLOURS[rule], marker="o", ms=4, capsize=2, label=NAMES[rule])
    lengths = sorted({int(row["segment_length"]) for row in own if row["rule"] != "bptt"})
    left.set(xscale="log", xlabel="steps between updates", ylabel="test accuracy, %", title="ECG-QTDB, 40 epochs")
    left.set_xticks(lengths, [str(length) for length in lengths])
    left.xaxis.set_minor_locator(NullLocator())
    left.legend(fontsize=8)
    names = {"hypr": ("HYPR online", "C0"), "tbptt": ("truncated BPTT online", "C1")}
    for (rule,), of_rule in group(maze, "rule").items():
        for seed, of_seed in group(of_rule, "seed").items():
            steps, turned = zip(*[(int(row["step"]) / 1000, 100 * float(row["right"])) for row in of_seed], strict=True)
            name, colour = names[rule]
            right.plot(steps, turned, colour, lw=1.2, label=name if seed == ("0",) else None)
    right.axhline(50, color="gray", lw=0.7, ls=":")
    right.set(
        xlabel="thousand steps",
        ylabel="turns to the side of the cue, %",
        title="T-maze, corridors of 50 to 200 steps",
        ylim=(35, 102),
    )
    right.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)


def gradient_figure(rows, path):
    """Cosine between HYPR's and BPTT's gradient during training, per neuron model."""
    neurons = list(dict.fromkeys(row["neuron"] for row in rows))
    figure, axes = plt.subplots(1, len(neurons), figsize=(3.6 * len(neurons), 3.4), sharey=True, layout="constrained")
    for axis, neuron in zip(np.atleast_1d(axes), neurons, strict=True):
        own = [row for row in rows if row["neuron"] == neuron and row["rule"] != "bptt"]
        for (rule, length), of in group(own, "rule", "segment_length").items():
            if int(length) not in (1, 50, 260):
                continue
            style = {"1": ":", "50": "--", "260": "-"}[length]
            epochs, values = zip(*[(int(row["epoch"]), float(row["cosine"])) for row in of], strict=True)
            axis.plot(epochs, values, style, color=COLOURS[rule], lw=1.3, label=f"{NAMES[rule]}, λ = {length}")
        axis.set(xlabel="epoch", title=neuron)
        axis.axhline(0, color="gray", lw=0.5)
    np.atleast_1d(axes)[0].set(ylabel="cosine to BPTT's gradient", ylim=(-0.5, 1.03))
    np.atleast_1d(axes)[0].legend(fontsize=7, loc="lower left")
    figure.savefig(path, dpi=130)


def main(docs):
    docs = Path(docs)
    rows = [row for name in ("ecg", "spoken_digits") for row in read(docs / "results" / f"{name}.csv")]
    print(table(rows), end="\n\n")
    brf = [row for row in rows if (row["task"], row["neuron"]) == ("ecg", "brf") and row["rule"] != "hypr-segment"]
    print(tuning_table(brf + read(docs / "results" / "ecg_tuning.csv")), end="\n\n")
    print(projection_table(read(docs / "results" / "ecg_project.csv")))
    online = read(docs / "results" / "ecg_online.csv")
    print(online_table(online))
    online_figure(online, read(docs / "results" / "tmaze.csv"), docs / "images" / "online.png")
    segment_length_figure(read(docs / "results" / "segment_length.csv"), docs / "images" / "segment_length.png")
    gradient_figure(read(docs / "results" / "gradients.csv"), docs / "images" / "gradients.png")


if __name__ == "__main__":
    main(sys.argv[1])
