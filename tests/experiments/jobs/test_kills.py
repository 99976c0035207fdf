"""A job that is killed just before each of its changes on disk ends with the bytes of one that nothing disturbed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.mark.slow
def test_a_job_killed_at_every_write_ends_with_the_same_bytes() -> None:
    command = [sys.executable, "-m", "tests.support.kills", "--steps", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.match(r"(\d+) kills, one before every write: the same (\d+) files, byte for byte", done.stdout)
    assert found, done.stdout
    kills, files = map(int, found.groups())
    # job, dense, moments, decomposition, Z twice, its checkpoints, model, two epochs, model, scores, result; deletions
    assert kills >= 20
    assert files >= 11
