"""Speed and memory of HYPR beside BPTT, checkpointed BPTT and explicit traces, all rules interleaved in one process.

    python -m benchmarks                 the whole table
    python -m benchmarks --quick         one case per neuron model (a few minutes)
    python -m benchmarks --cells brf --neurons 128 --batch 32 --steps 1000 --segment-lengths 50 100 250

Times are medians over several rounds, each of which runs every rule once; compile times and compiled
temporary memory are those of the whole gradient. "/best" is relative to the faster of plain and checkpointed BPTT. The
rules that begin with "online" update the parameters with Adam after every segment. Ratios matter, milliseconds are the
machine's. `NPROC=1` in front keeps XLA on one thread.
"""

import argparse
import gc
import json
import os
import platform
import shlex
import sys
import time
from itertools import product
from pathlib import Path

import jax
import numpy as np

from benchmarks import external, rules

CELLS = ["lif", "alif", "se_adlif", "brf"]


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=Formatter)
    parser.add_argument("--quick", action="store_true", help="n=128, B=32, T=1000 only, no ECG-size cases")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS, help="neuron models")
    parser.add_argument("--inputs", type=int, default=140, help="input channels m")
    parser.add_argument("--neurons", type=int, nargs="+", default=[128, 512], help="neurons n")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="batch sizes B")
    parser.add_argument("--steps", type=int, nargs="+", default=[250, 1000, 4000], help="sequence lengths T")
    parser.add_argument("--segment-lengths", type=int, nargs="+", default=[50, 100, 250], help="of HYPR")
    parser.add_argument(
        "--online-lengths", type=int, nargs="+", default=[10, 25, 50, 100, 250], help="steps per update, online"
    )
    parser.add_argument(
        "--scans",
        nargs="+",
        choices=["auto", "sequential", "associative"],
        default=["auto", "sequential", "associative"],
        help="back ends of HYPR",
    )
    parser.add_argument("--no-ecg", action="store_true", help="leave out the ECG-size cases m=4 n=36 B=16 T=1300")
    parser.add_argument("--no-external", action="store_true", help="leave out braintrace and spyx where installed")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of every rule")
    parser.add_argument("--limit", type=float, default=20.0, help="leave out a rule whose first run takes more seconds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"), help="folder of JSON and plot")
    parser.add_argument("--append", action="store_true", help="keep the cases that the JSON there already has")
    return parser.parse_args(arguments)


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's lines and shows defaults."""


def cases(options):
    """Every case asked for, ECG-size ones last."""
    neurons, batch, steps = ([128], [32], [1000]) if options.quick else (options.neurons, options.batch, options.steps)
    for cell, n, b, t in product(options.cells, neurons, batch, steps):
        yield rules.Case(cell, options.inputs, n, b, t)
    if not (options.no_ecg or options.quick):
        for cell in options.cells:
            yield rules.Case(cell, inputs=4, neurons=36, batch=16, steps=1300, classes=6)


def measure(case, functions, params, xs, options):
    """Compiles every rule, then times all of them in turn; rows as dicts, slowest rules dropped by `--limit`."""
    rows, runs = {}, {}
    for label, f in functions.items():
        start = time.perf_counter()
        compiled = jax.jit(f).lower(params, xs).compile()
        compile_seconds = time.perf_counter() - start
        start = time.perf_counter()
        jax.block_until_ready(compiled(params, xs))
        if time.perf_counter() - start > options.limit:
            continue
        runs[label] = compiled
        memory = compiled.memory_analysis().temp_size_in_bytes / 1e6
        rows[label] = {**case._asdict(), "rule": label, "compile_s": compile_seconds, "memory_mb": memory}
    for label, seconds in by_turns(runs, params, xs, options.rounds).items():
        row = rows[label]
        row["ms"] = 1e3 * float(np.median(seconds))
        row["steps_per_s"] = 1e3 * case.steps / row["ms"]
    for row in rows.values():
        best = min((other["ms"] for other in rows.values() if rules.is_exact(other["rule"])), default=None)
        row["to_best_bptt"] = row["ms"] / best if best else None
        for base in ("bptt", "step by step"):
            row[f"to_{base}"] = row["ms"] / rows[base]["ms"] if base in rows else None
    return list(rows.values())


def by_turns(programs, params, xs, rounds):
    """Seconds of every run of compiled programs, by label: each runs once in every round."""
    seconds = {label: [] for label in programs}
    for _ in range(rounds):
        for label, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(params, xs))
            seconds[label].append(time.perf_counter() - start)
    return seconds


def table(rows):
    """The rows as an aligned text table."""
    lines = [f"{'rule':<28}{'ms':>10}{'/best':>8}{'/BPTT':>8}{'/steps':>9}{'MB':>10}{'compile s':>11}{'steps/s':>10}"]
    for row in rows:
        ratios = [f"{row[key]:.3f}" if row[key] else "-" for key in ("to_best_bptt", "to_bptt", "to_step by step")]
        lines.append(
            f"{row['rule']:<28}{row['ms']:>10.1f}{ratios[0]:>8}{ratios[1]:>8}{ratios[2]:>9}{row['memory_mb']:>10.1f}"
            f"{row['compile_s']:>11.2f}{row['steps_per_s']:>10.0f}"
        )
    return "\n".join(lines)


def machine():
    """What the numbers were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = f"{len(names)} x {names[0]}" if names else model
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": model,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def main(arguments=None):
    options = parse_arguments(arguments)
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    if threads := os.environ.get("NPROC"):
        command = f"NPROC={threads} {command}"
    path = options.out / "benchmarks.json"
    rows = json.loads(path.read_text())["rows"] if options.append and path.exists() else []
    for case in cases(options):
        error = rules.check_step_by_step(case)
        assert error < 1e-3, f"the gradient step by step differs from HYPR at λ = 1 by {error}"
        params, xs, loss_fn = rules.problem(case)
        functions = rules.all_rules(case, loss_fn, options.segment_lengths, options.scans, options.online_lengths)
        if not options.no_external:
            functions |= external.all_rules(case)
        new = measure(case, functions, params, xs, options)
        print(f"\n{case}\n{table(new)}", flush=True)
        rows = [row for row in rows if any(row[name] != value for name, value in case._asdict().items())]
        rows += [{**row, "command": command} for row in new]
        jax.clear_caches()
        gc.collect()
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), "rounds": options.rounds, "rows": rows}, indent=1))
    from benchmarks import plot

    plot.save(rows, options.out / "benchmarks.png")
    print(f"\nsaved {options.out}/benchmarks.json and .png")


if __name__ == "__main__":
    main()
