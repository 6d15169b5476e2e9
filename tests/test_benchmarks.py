"""The benchmark measures what it says: its rule step by step is HYPR at λ = 1, its table has every rule."""

import json

import jax
import pytest

import benchmarks.__main__ as program
import benchmarks.scaling as scaling
from benchmarks.rules import Case, check_step_by_step


@pytest.fixture(autouse=True)
def _float32():
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("cell", program.CELLS)
def test_step_by_step_is_hypr_at_one_step_per_segment(cell):
    assert check_step_by_step(Case(cell, inputs=6, neurons=5, batch=3, steps=20)) < 1e-4


def test_a_small_benchmark_runs(tmp_path, capsys):
    program.main(
        "--cells lif --inputs 5 --neurons 4 --batch 2 --steps 40 --rounds 2 --segment-lengths 10 --scans sequential "
        f"--no-ecg --no-external --out {tmp_path}".split()
    )
    result = json.loads((tmp_path / "benchmarks.json").read_text())
    rules = {row["rule"] for row in result["rows"] if row["steps"] == 40}
    hypr = {"hypr sequential 10", "hypr sequential 40", "hypr segment-credit 40"}  # 40: the default
    exact = {"bptt", "bptt checkpointed 8", "bptt checkpointed 40", "hj.bptt 8"}
    online = {"online hypr 10", "online bptt 10", "online hypr 25", "online bptt 25"}
    assert rules == {"forward", "hj.hypr 40", "e-prop 40", "step by step", *exact, *online, *hypr}
    assert all(row["ms"] > 0 and row["memory_mb"] > 0 and row["compile_s"] > 0 for row in result["rows"])
    assert (tmp_path / "benchmarks.png").stat().st_size > 10_000
    assert "steps/s" in capsys.readouterr().out


def test_scaling_reads_traffic_flops_and_memory_out_of_the_program(monkeypatch):
    monkeypatch.setattr(scaling, "STEPS", 40)
    monkeypatch.setattr(scaling, "LENGTH", 10)
    one, by_batch, by_neurons = (scaling.measure(shape, 8, 16) for shape in [(1, 1), (8, 1), (1, 8)])
    assert (one["bytes_per_step"], one["kb_per_segment"]) == (0, 0)
    assert by_batch["bytes_per_step"] == 0
    assert by_neurons["bytes_per_step"] == 4 * 8 * 16  # the spikes of all neurons
    assert by_batch["flops_per_device"] < 0.2 * one["flops_per_device"]
    assert by_neurons["flops_per_device"] < 0.4 * one["flops_per_device"]
    assert by_batch["memory_mb_per_device"] < 0.3 * one["memory_mb_per_device"]


def test_a_profile_names_the_parts_of_the_algorithm():
    from benchmarks import profile
    from benchmarks.rules import Case

    parts = profile.profile(Case("brf", inputs=5, neurons=4, batch=2, steps=40), segment_length=20, runs=1)
    assert {"recursion", "weights", "contraction", "traces", "s_stage"} <= set(parts)
    assert all(ms > 0 and kernels >= 1 for ms, kernels in parts.values())
    assert "| S-stage | " in profile.table(parts)


def test_the_table_of_an_accelerator_in_small(tmp_path, capsys, monkeypatch):
    import benchmarks.accelerator as accelerator

    monkeypatch.setattr(accelerator, "SMALL", [(4, 2, 20)])
    accelerator.main(["--small", "--rounds", "1", "--out", str(tmp_path / "a.json")])
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert {row["rule"] for row in rows} >= {"forward", "hj.bptt", "hypr", "hypr, sequential", "hypr online, 10 steps"}
    assert "n=4, B=2, T=20" in capsys.readouterr().out
