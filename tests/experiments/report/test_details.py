"""The command that repeats a row."""

import shlex

import pytest

from experiments.__main__ import _parser
from experiments.report.rows import command
from experiments.runner.campaign import _options
from experiments.runner.plan import Options, make_plan
from tests.experiments.support.synthetic import IMAGES, TABLE
from tests.support.cases import in_turn

ROWS = {row.id: row for row in TABLE.runnable}


@pytest.mark.parametrize(
    ("options", "name"),
    in_turn(
        [
            Options(),
            Options(seeds=(3,), epochs=2, steps=7, solver="moments", limit=100),
            Options(seeds=(0, 1), batch_size=32, calibration_samples=64, processes=4, precision="bf16-mixed"),
        ],
        ["m/baseline", "m/svd-40", "m/ours-40"],
    ),
)
def test_the_command_line_plans_the_same_jobs(options: Options, name: str) -> None:
    """The truth is the parser of the command line itself, and the plan that it leads to."""

    def jobs(options: Options) -> list[str]:
        plan = {item.row.id: item for item in make_plan(TABLE, options, IMAGES)}
        return [job.key for job in plan[name].jobs]

    plan = {item.row.id: item for item in make_plan(TABLE, options, IMAGES)}
    words = shlex.split(command(TABLE, ROWS[name], plan[name].jobs))
    assert words[:5] == ["python", "-m", "experiments", "run", f"table9/{name}"]
    assert jobs(_options(_parser().parse_args(words[3:]))) == jobs(options)
