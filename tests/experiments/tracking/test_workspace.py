"""The workspace as code: it builds, and every name in it is one that real runs have."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from experiments.__main__ import main
from experiments.jobs.run import run_job
from tests.experiments.support.offline_runs import OfflineRun, read_runs
from tests.experiments.tracking.test_runs import quiet, task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> OfflineRun:
    """The run of a job that has everything: Z by a gradient solver, Algorithm 1, fine-tuning."""
    folder = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE", raising=False)
        patch.setenv("WANDB_DATA_DIR", str(folder / "wandb"))
        run_job(task(folder), quiet)
    (run,) = read_runs(folder)
    return run


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["workspace", *arguments])
    return int(stop.value.code or 0)


def described(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert exit_code(*arguments) == 0
    return json.loads(capsys.readouterr().out)


def panels(description: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and settings of every panel."""
    for section in description["spec"]["section"]["panelBankConfig"]["sections"]:
        for panel in section["panels"]:
            yield panel["viewType"], panel["config"]


def test_every_name_is_one_of_a_run(found: OfflineRun, capsys: pytest.CaptureFixture[str]) -> None:
    description = described(capsys, "--entity", "somebody")
    kinds: dict[str, int] = {}
    logged = {name for row in found.history for name in row}
    for kind, config in panels(description):
        kinds[kind] = kinds.get(kind, 0) + 1
        if kind == "Scatter Plot":
            for axis in (config["xAxis"], config["yAxis"]):
                section, _, name = axis.partition(":")
                assert section == "summary"
                assert isinstance(found.summary[name], int | float), axis
        elif kind == "Bar Chart":
            assert config["groupBy"].removesuffix(".value") in found.config
            assert all(isinstance(found.summary[name], int | float) for name in config["metrics"])
        elif kind == "Run History Line Plot":
            names = set(config.get("metrics", []))
            if "metricRegex" in config:
                names |= {name for name in logged if re.search(config["metricRegex"], name)}
                assert len(names) == 11  # layers with a Z, and not the axis
            assert names
            for name in names:
                assert found.curve(config["xAxis"], name), name
        else:
            assert kind == "Weave"
            assert '"layers"' in json.dumps(config)
            assert found.table("layers")
    assert kinds == {"Scatter Plot": 4, "Bar Chart": 6, "Run History Line Plot": 11, "Weave": 1}
