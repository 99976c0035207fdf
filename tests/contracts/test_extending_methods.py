"""What CONTRIBUTING.md promises: a paper is one file in ``methods``, where registries, lists, plots and tables find it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sources import ROOT

pytestmark = pytest.mark.slow

FILE = '''
# --8<-- [start:method]
"""Loudest: hidden units of largest mean activation."""

from dataclasses import dataclass
from typing import ClassVar

from lowrank_vit.compression.recipe import add_recipe
from lowrank_vit.records.factors import Directions, InputSubset
from lowrank_vit.records.looks import PRINTED, Printed, look
from lowrank_vit.stages.decompose import MLPS


@MLPS.register("loudest")
@dataclass(frozen=True)
class Loudest:
    """Score a hidden unit by its mean activation to a power."""

    revision: ClassVar[int] = 1

    power: float = 1.0

    needs: ClassVar = (frozenset({"input_second"}),)

    def __call__(self, site, weight, moments, made):
        """Order the hidden units; weight: (h, d)."""
        mean = moments.mean("input_sum")
        return InputSubset.pruned(Directions.by_share(mean.abs() ** self.power), weight, mean)


add_recipe("loudest", units={"mlp": Loudest()}, about="hidden units of largest mean activation")
look("loudest", "o", (1, 1), "red", "Loudest")
PRINTED.add("loudest", (Printed("deit_t", "Loudest", "3.5M (-39%)", 60.0, "Nobody 2026", "training-free", "0"),))
# --8<-- [end:method]
'''
SCRIPT = """
import json, sys
import lowrank_vit.methods
lowrank_vit.methods.__path__.append(sys.argv[1])
from lowrank_vit import RECIPES, compress, get_recipe, recipe_of
from lowrank_vit.cli.verbs.list import listing
from lowrank_vit.records.looks import PRINTED
from experiments.report.styles import known_style
from experiments.tables import table_rivals
from experiments.tables.architectures import DEIT_T
from tests.support.models import images, tiny
assert known_style("Loudest (loudest)").marker == "o"
assert table_rivals._row(DEIT_T, "loudest", 40).method == "Loudest (loudest)"
assert PRINTED.get("loudest")[0].top1 == 60.0
_, report = compress(tiny(), [images(8)], get_recipe("loudest").but(**{"mlp.power": 2.0}), 0.2)
fields = report["recipe_fields"]
assert recipe_of(fields) == RECIPES["loudest"].but(**{"mlp.power": 2.0})
print(json.dumps([list(RECIPES)[-1], listing("recipes")["loudest"], fields["mlp"], fields["hyperparameters"]["mlp"]]))
"""


def test_a_new_method_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "loudest.py").write_text(FILE)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == ["loudest", "hidden units of largest mean activation", "loudest", {"power": 2.0}]
