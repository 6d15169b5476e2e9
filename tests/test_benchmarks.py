"""The benchmark measures what it says: its e-prop is HYPR at λ = 1, its table has every rule."""

import json

import jax
import pytest

import benchmarks.__main__ as program
from benchmarks.rules import Case, check_eprop


@pytest.fixture(autouse=True)
def _float32():
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("cell", program.CELLS)
def test_eprop_step_by_step_is_hypr_at_one_step_per_segment(cell):
    assert check_eprop(Case(cell, inputs=6, neurons=5, batch=3, steps=20)) < 1e-4


def test_a_small_benchmark_runs(tmp_path, capsys):
    program.main(
        "--cells lif --inputs 5 --neurons 4 --batch 2 --steps 20 40 --rounds 2 --segment-lengths 10 --scans sequential "
        f"--no-ecg --no-external --out {tmp_path}".split()
    )
    result = json.loads((tmp_path / "benchmarks.json").read_text())
    rules = {row["rule"] for row in result["rows"] if row["steps"] == 40}
    hypr = {f"hypr {kind} {length}" for kind in ("sequential", "segment-credit") for length in (10, 40)}  # 40: default
    assert rules == {"forward", "bptt", "e-prop", *hypr}
    assert all(row["ms"] > 0 and row["memory_mb"] > 0 and row["compile_s"] > 0 for row in result["rows"])
    assert (tmp_path / "benchmarks.png").stat().st_size > 10_000
    assert "steps/s" in capsys.readouterr().out
