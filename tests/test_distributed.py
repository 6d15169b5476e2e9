"""Several processes on one machine: the losses of one, and checkpoints that go on with fewer."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).parent.parent / "examples" / "distributed.py"


def run(processes, segments, *options):
    """Losses by number of the segment."""
    command = [sys.executable, EXAMPLE, "--processes", processes, "--segments", segments, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240, env={"PATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    return {int(i): float(loss) for i, loss in re.findall(r"segment (\d+) loss (\S+)", done.stdout)}


def test_two_and_four_processes_have_the_losses_of_one_and_checkpoints_change_hands(tmp_path):
    one = run(1, 9)
    assert len(one) == 9
    handed_on = {}
    for processes, segments in [(4, 3), (2, 6), (1, 9)]:
        losses = run(processes, segments, "--checkpoints", tmp_path / "run")
        assert list(losses) == list(range(segments - 3, segments))
        handed_on |= losses
    assert np.allclose(list(handed_on.values()), list(one.values()), rtol=1e-5, atol=0)


def test_two_processes_from_the_start_to_the_end():
    assert np.allclose(list(run(2, 4).values()), list(run(1, 4).values()), rtol=1e-5, atol=0)
