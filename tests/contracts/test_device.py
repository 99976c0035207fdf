"""Everything that runs without Lightning, on a device that is not there: its tensors refuse to meet the CPU's.

No GPU is needed, and none is replaced: kernels, memory and streams of a real one are not tested.
"""

import os
import subprocess
import sys

import pytest

from tests.support.sources import ROOT


def ran(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tests.support.pretend_stages", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_nothing_meets_the_tensors_of_the_cpu() -> None:
    done = ran("everything")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(("planted", "recipe"), [("identity", "exact"), ("counts", "best")])
def test_a_planted_mistake_is_noticed(planted: str, recipe: str) -> None:
    done = ran("recipes", planted, recipe)
    assert done.returncode != 0
    assert "tensors of both devices meet" in done.stderr
