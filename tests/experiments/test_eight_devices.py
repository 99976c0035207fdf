"""A rehearsal of eight GPUs: the command of an ImageNet run, with eight processes on a stand-in, up to the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
ROWS = ("table2/deit_s/ours-paper-40",)  # each row starts eight processes of its own
IMAGES = 100  # evaluated
SMALL = ["--seeds", "0", "--epochs", "1", "--steps", "4", "--solver", "minibatch", "--limit", str(IMAGES)]
SMALL += ["--calibration-samples", "64", "--global-batch", "64", "--no-wandb"]


def rows(folder: Path, devices: int) -> dict[str, dict[str, Any]]:
    """Run the command; returns the rows of the table that it leaves."""
    command = [sys.executable, "-m", "experiments", "run", *ROWS, *SMALL, "--devices", str(devices)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--results", str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "wandb").exists()
    table = json.loads((folder / "table2" / "table.json").read_text(encoding="utf-8"))
    found = {row["id"]: row for row in table["rows"]}
    chosen = {name: found[name.removeprefix("table2/")] for name in ROWS}
    assert all(row["status"] == "done" for row in chosen.values())
    for name in chosen:
        assert chosen[name]["method"] in (folder / "table2" / "table.md").read_text(encoding="utf-8")
    return chosen


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """The result of each job, by recipe."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("jobs/*/result.json")]
    return {one["job"]["recipe"]: one for one in found}


@pytest.mark.slow
@pytest.mark.timeout(1500)  # eight processes import everything, on as many cores as there are
def test_eight_processes_end_in_the_table_of_one(tmp_path: Path) -> None:
    """The same choices; accuracies differ by what sums in another order can do.

    Calibration, allocation and evaluation are the same up to rounding, so before training at most one image of 100 may
    tip over. In training all 20 whole steps see the same 64 images; the last step's 17 are filled up to 24, so that all
    take as many, and weigh the same at a learning rate that has fallen to 0.6 % by then. Two images may tip over there.
    """
    one, eight = (rows(tmp_path / str(devices), devices) for devices in (1, 8))
    alone, together = results(tmp_path / "1"), results(tmp_path / "8")
    assert alone.keys() == together.keys() == {"paper"}
    for recipe, result in alone.items():
        other = together[recipe]
        assert (other["job"]["processes"], other["job"]["batch_size"]) == (8, 8)
        assert [layer["rank"] for layer in other["layers"]] == [layer["rank"] for layer in result["layers"]]
        assert other["loss"]["before"] == pytest.approx(result["loss"]["before"], rel=1e-3)
        assert other["loss"]["after"] == pytest.approx(result["loss"]["after"], rel=1e-2)
    image = 100 / IMAGES + 1e-6
    for name in ROWS:
        left, right = one[name], eight[name]
        for exact in ("params", "macs", "reduction", "model", "protocol", "seeds"):
            assert left[exact] == right[exact], (name, exact)
        assert right["top1_dense"] == pytest.approx(left["top1_dense"], abs=image)
        assert right["top1_before_finetune"] == pytest.approx(left["top1_before_finetune"], abs=image)
        assert right["top1"] == pytest.approx(left["top1"], abs=2 * image)
        assert right["relative_error_held_out"] == pytest.approx(left["relative_error_held_out"], rel=1e-3)
