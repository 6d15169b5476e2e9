"""The picture of the table: time and memory against T, time against the segment length."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullLocator


def best_hypr(rows):
    """The fastest HYPR row of a case with the paper's rule."""
    paper = [row for row in rows if row["rule"].startswith("hypr") and "segment-credit" not in row["rule"]]
    return min(paper, key=lambda row: row["ms"])


def by_case(rows):
    """Rows grouped by the fields that name a case."""
    groups = {}
    for row in rows:
        key = tuple(row[name] for name in ("cell", "inputs", "neurons", "batch", "steps"))
        groups.setdefault(key, []).append(row)
    return groups


def save(rows: list[dict], path: Path) -> None:
    """Draws all rows of the benchmark and saves the figure."""
    cells = list(dict.fromkeys(row["cell"] for row in rows))
    figure, axes = plt.subplots(len(cells), 3, figsize=(11, 3 * len(cells)), squeeze=False, layout="constrained")
    groups = by_case(rows)
    for own_axes, cell in zip(axes, cells, strict=True):
        own = {key: group for key, group in groups.items() if key[0] == cell}
        _, m, n, b, _ = max(own, key=lambda key: (sum(key[:1] + key[1:4] == k[:4] for k in own), key[3], -key[2]))
        size = {key[4]: group for key, group in own.items() if key[1:4] == (m, n, b)}
        title = f"{cell}, m={m}, n={n}, B={b}"
        against_time(own_axes[0], size, "ms", "ms per gradient", title)
        against_time(own_axes[1], size, "memory_mb", "temporary memory (MB)", title)
        against_segment_length(own_axes[2], size)
    axes[0, 0].legend(fontsize=8)
    axes[0, 2].legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def against_time(axes, size, field, label, title):
    """One quantity against the sequence length, rule by rule."""
    pick = {
        "BPTT": lambda group: next((row for row in group if row["rule"] == "bptt"), None),
        "HYPR, best λ": best_hypr,
        "traces, step by step": lambda group: next((row for row in group if row["rule"] == "step by step"), None),
        "forward": lambda group: next((row for row in group if row["rule"] == "forward"), None),
    }
    for name, of in pick.items():
        points = sorted((steps, row[field]) for steps, group in size.items() if (row := of(group)))
        axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=name) if points else None
    axes.set(xscale="log", yscale="log", xlabel="steps T", ylabel=label, title=title)
    finish(axes, sorted(size))


def against_segment_length(axes, size):
    """Time relative to BPTT against λ, at the sequence length measured with most of them."""
    steps = max(size, key=lambda steps: (len(size[steps]), steps))
    for prefix in ("hypr auto", "hypr sequential", "hypr associative", "hypr segment-credit"):
        rows = [row for row in size[steps] if row["rule"].startswith(prefix)]
        points = sorted((int(row["rule"].split()[-1]), row["to_bptt"]) for row in rows)
        axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=prefix) if points else None
    axes.axhline(1, color="gray", lw=0.8)  # BPTT
    axes.set(xscale="log", xlabel="segment length λ", ylabel="time / BPTT", ylim=(0, None), title=f"T={steps}")
    finish(axes, sorted({int(row["rule"].split()[-1]) for row in size[steps] if row["rule"].startswith("hypr")}))


def finish(axes, ticks):
    """Ticks where something was measured, a small title."""
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.title.set_fontsize(9)
