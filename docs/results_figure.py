"""The pictures and the tables of docs/results.md, from the CSV files beside it; a table stands between two comments.

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


def markdown(header, rows):
    """A table of rows of cells, under a header with cells separated by `|`."""
    return "\n".join(
        [f"| {header} |", "|" + "---|" * len(header.split(" | ")), *[f"| {' | '.join(row)} |" for row in rows]]
    )


def spread(mean, deviation):
    return f"{mean:.2f} ± {deviation:.2f}" if deviation else f"{mean:.2f}"


def seeds_of(rows):
    return ", ".join(row["seed"] for row in rows)


def whole_table(rows):
    """Task x neuron x rule, one update a sequence."""
    lines, groups = [], group(rows, "task", "neuron", "rule")
    for (task, neuron, rule), own in groups.items():
        mean, deviation = accuracy(own)
        exact = groups.get((task, neuron, "bptt"))
        gap = f"{accuracy(exact)[0] - mean:.2f}" if exact and rule != "bptt" else "-"
        cell, _, layers = neuron.partition("x")
        network = f"`{cell}`" + (f", {layers} layers" if layers == "2" else "")
        cost = f"{float(own[0]['seconds_per_epoch']):.1f}", own[0]["memory_mb"], own[0]["commit"]
        lines.append((task, network, NAMES[rule], spread(mean, deviation), gap, seeds_of(own), *cost))
    header = "task | neuron | rule | test accuracy, % | gap to BPTT | seeds | s/epoch | memory, MB | commit"
    return markdown(header, lines)


def tuning_table(rows):
    """Rule x learning rate x segment length."""
    lines = []
    for row in rows:
        row["rate"] = option(row, "learning-rate", "0.1")
    for (rule, rate, length), own in sorted(group(rows, "rule", "rate", "segment_length").items()):
        parts = [spread(*accuracy(own, of)) for of in ("valid_accuracy", "test_accuracy")]
        length = "-" if rule == "bptt" else length.replace("default", "260, the default")
        lines.append((NAMES[rule], rate, length, *parts, seeds_of(own)))
    return markdown("rule | learning rate | λ | validation accuracy, % | test accuracy, % | seeds", lines)


def projection_table(rows):
    """Rule x with and without `hj.project`."""
    lines = []
    for row in rows:
        row["project"] = "no" if "--no-project" in row["command"] else "yes"
    for (rule, project), own in sorted(group(rows, "rule", "project").items()):
        parts = [spread(*accuracy(own, f"{of}_accuracy")) for of in ("valid", "test", "last")]
        lines.append((NAMES[rule], project, *parts, seeds_of(own)))
    header = "rule | `hj.project` | validation accuracy, % | test accuracy, % | test, last epoch, % | seeds"
    return markdown(header, lines)


def online_table(rows):
    """Neuron x rule x batch size x steps per update."""
    lines = []
    for (neuron, rule, batch, length), own in group(rows, "neuron", "rule", "batch", "segment_length").items():
        parts = [spread(*accuracy(own, of)) for of in ("test_accuracy", "last_accuracy")]
        every = "sequence" if rule == "bptt" else f"{length} steps"
        seconds = max(float(row["seconds_per_epoch"]) for row in own)
        cost = str(len(own)), f"{seconds:.1f}", own[0]["memory_mb"]
        lines.append((f"`{neuron}`", NAMES[rule], batch, every, *parts, *cost))
    header = "neuron | rule | batch | update every | test accuracy, % | last epoch, % | seeds | s/epoch | memory, MB"
    return markdown(header, lines)


def mnist_table(rows):
    """Order of the pixels x neurons x rule x learning rate x passes."""
    lines = []
    for row in rows:
        row["rate"], row["neurons"] = option(row, "learning-rate", "0.01"), option(row, "neurons", "256")
        row["order"] = row["task"].split()[0]
    for (order, neurons, rule, rate, epochs, length), own in group(
        rows, "order", "neurons", "rule", "rate", "epochs", "segment_length"
    ).items():
        every = f"{length} steps" if rule.endswith("online") else "784 steps"
        parts = [spread(*accuracy(own, of)) for of in ("test_accuracy", "last_accuracy", "valid_accuracy")]
        cost = f"{float(own[0]['seconds_per_epoch']):.0f}", own[0]["memory_mb"], seeds_of(own), own[0]["commit"]
        lines.append((order, neurons, NAMES[rule], every, rate, epochs, *parts, *cost))
    header = "pixels | neurons | rule | update every | learning rate | passes | test accuracy, % | last epoch, %"
    return markdown(f"{header} | validation, % | s/epoch | memory, MB | seeds | commit", lines)


def digits_table(rows):
    """Layers x rule."""
    lines = []
    for (neuron, rule, length), own in group(rows, "neuron", "rule", "segment_length").items():
        every = f"{length} steps" if rule.endswith("online") else "sequence"
        cost = f"{float(own[0]['seconds_per_epoch']):.1f}", own[0]["memory_mb"], own[0]["commit"]
        parts = [spread(*accuracy(own, of)) for of in ("test_accuracy", "valid_accuracy")]
        lines.append((neuron.partition("x")[2], NAMES[rule], every, own[0]["epochs"], *parts, seeds_of(own), *cost))
    header = "layers | rule | update every | passes | test accuracy, % | validation, % | seeds | s/epoch | memory, MB"
    return markdown(f"{header} | commit", lines)


def evidence_table(rows):
    """Steps per update x passes x rule, all seeds."""
    lines = []
    for (length, epochs, rule), own in group(rows, "segment_length", "epochs", "rule").items():
        each = ", ".join(f"{100 * float(row['test_accuracy']):.1f}" for row in own)
        mean = f"{accuracy(own)[0]:.1f}"
        lines.append((f"{length} steps", epochs, NAMES[rule], mean, each, seeds_of(own), own[0]["commit"]))
    return markdown("update every | passes | rule | test accuracy, % | of each seed | seeds | commit", lines)


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


def online_figure(rows, maze, path):
    """Accuracy against the interval between updates on ECG, and the T-maze."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    own = [row for row in rows if (row["neuron"], row["batch"]) == ("brf", "8")]
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


def delays_figure(rows, path):
    """Accuracy against the delay between symbol and answer, per rule and neuron model."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axes, rule in zip(both, ("hypr-online", "tbptt-online"), strict=True):
        for (neuron,), own in group([row for row in rows if row["rule"] == rule], "neuron").items():
            points = sorted((int(task.split()[-1]), *accuracy(of)) for (task,), of in group(own, "task").items())
            delays, mean, deviation = map(np.array, zip(*points, strict=True))
            axes.plot(delays, mean, marker="o", ms=4, label=neuron)
            axes.fill_between(delays, mean - deviation, mean + deviation, alpha=0.15, lw=0)
        axes.set(xscale="log", xlabel="delay, steps", title=NAMES[rule.replace("hypr-", "hypr-segment-")])
        axes.set_xticks(delays, map(str, delays))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.axhline(25, color="gray", lw=0.7, ls=":")
    both[0].set(ylabel="test accuracy, %", ylim=(15, 103))
    both[0].legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=130)


def time_figure(rows, seconds, path):
    """Accuracy against the time that 40 epochs of one network take, on ECG."""
    figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    duration = {(row["rule"], row["batch"], row["segment_length"]): 40 * float(row["seconds"]) for row in seconds}
    brf = [row for row in rows if row["neuron"] == "brf"]
    for rule, at in (("bptt", "batch"), ("tbptt-online", "segment_length"), ("hypr-segment-online", "segment_length")):
        own = [row for row in brf if row["rule"] == rule]
        points = [
            (duration[rule, batch, length], *accuracy(of), len(of), of[0][at])
            for (batch, length), of in group(own, "batch", "segment_length").items()
            if length != "260"  # where 100 is
        ]
        x, mean, deviation, seeds, names = zip(*points, strict=True)
        label = f"{NAMES[rule]}, by {'batch size' if at == 'batch' else 'steps between updates'}"
        style = {"color": COLOURS[rule], "marker": "o", "ms": 4, "capsize": 2, "lw": 1}
        axes.errorbar(x, mean, np.array(deviation) / np.sqrt(seeds), **style, label=label)
        for i, point in enumerate(zip(x, mean, strict=True)):
            side = {"ha": "right"} if rule == "tbptt-online" and i % 2 else {}
            offset = (-5, -3) if side else (5, 3)
            style = {"textcoords": "offset points", "fontsize": 8, "color": COLOURS[rule]}
            axes.annotate(names[i], point, offset, **style, **side)
    axes.set(xlabel="seconds for 40 epochs of one network", ylabel="test accuracy, %", title="ECG-QTDB, 36 BRF neurons")
    axes.set(xlim=0, ylim=(77, 87.5))
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)


def fill(page, tables):
    """Puts each table where the page has its name in a comment."""
    text = page.read_text()
    for name, content in tables.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise SystemExit(f"{page} has no place for the table {name!r}")
        text = "".join([before, mark, content, "\n", end, after])
    page.write_text(text)


def main(docs):
    docs = Path(docs)
    of = {path.stem: read(path) for path in sorted((docs / "results").glob("*.csv"))}
    for row in of["ecg_online"]:
        row["batch"] = option(row, "batch-size", "64" if row["neuron"] == "se_adlif" else "16")
    digits = [row for row in of["spoken_digits"] if row["seeds_at_once"] == "5"]
    whole = of["ecg"] + [row for row in of["spoken_digits"] if row["seeds_at_once"] != "5"]
    brf = [row for row in of["ecg"] if row["neuron"] == "brf" and row["rule"] != "hypr-segment"]
    online = [row for row in of["ecg_online"] if (row["neuron"], row["rule"]) == ("se_adlif", "hypr-segment-online")]
    unprojected = [row for row in online if int(row["seed"]) < 4]
    tables = {
        "online": online_table(of["ecg_online"]),
        "once": whole_table(whole),
        "rate": tuning_table(brf + of["ecg_tuning"]),
        "project": projection_table(of["ecg_project"] + unprojected),
        "mnist": mnist_table(of["smnist"]),
        "digits": digits_table(digits),
        "evidence": evidence_table(of["evidence"]),
    }
    fill(docs / "results.md", tables)
    online_figure(of["ecg_online"], of["tmaze"], docs / "images" / "online.png")
    time_figure(of["ecg_online"], of["ecg_time"], docs / "images" / "time.png")
    delays_figure(of["delays"], docs / "images" / "delays.png")
    segment_length_figure(of["segment_length"], docs / "images" / "segment_length.png")
    gradient_figure(of["gradients"], docs / "images" / "gradients.png")


if __name__ == "__main__":
    main(sys.argv[1])
