"""Rows and tables."""

import re
from dataclasses import replace

import pytest
import timm

from experiments.runner.plan import Options, make_plan, open_images
from experiments.tables.catalogue import find, tables
from experiments.tables.rows import Reported, Row, Table
from lowrank_vit import InputError, get_recipe
from lowrank_vit.compression.budget import check_budget
from lowrank_vit.models import STANDINS

PRINTED = {  # copied by hand from the paper
    "deit_b/baseline": ("86.6M", 81.80),
    "deit_b/aafm": ("51.9M (-40%)", 81.28),
    "deit_b/s2vite": ("56.8M (-35%)", 82.20),
    "deit_b/svd-40": ("52.0M (-40%)", 77.30),
    "deit_b/ours-exact-60": ("34.6M (-60%)", 81.10),
    "deit_s/wdpruning": ("15.0M (-32%)", 78.60),
    "deit_s/ours-paper-50": ("11.1M (-50%)", 79.34),
    "vit_b/vtp": ("48.0M (-45%)", 80.70),
    "vit_b/svd-50": ("42.3M (-50%)", 78.50),
    "vit_b/ours-paper-40": ("52.9M (-40%)", 84.20),
    "swin_b/baseline": ("88.1M", 85.45),
    "swin_b/spvit": ("68.0M (-24%)", 83.20),
    "swin_b/ours-loss_aware-60": ("35.3M (-60%)", 83.14),
    "deit_t/ours-exact-40": (None, None),
}
every_table = pytest.mark.parametrize("table", tables().values(), ids=lambda table: table.name)


@every_table
def test_rows_are_well_formed(table: Table) -> None:
    assert len(table.rows) > 3
    assert table.runnable
    ids = [row.id for row in table.rows]
    assert len(set(ids)) == len(ids)
    assert table.title
    assert "python -m experiments run" in table.about
    for row in table.rows:
        assert row.id.count("/") == 1
        if isinstance(row, Reported):
            assert row.source
            assert 0 < row.top1 < 100
    for row in table.runnable:
        architecture = row.model.partition(".")[0]
        assert timm.is_model(architecture)
        assert row.model in timm.models.get_arch_pretrained_cfgs(architecture), "the tag is unknown to timm"
        assert row.standin is None or row.standin in STANDINS
        assert row.recipe is None or get_recipe(row.recipe)
        cut = row.recipe is not None or row.measure or row.tokens
        assert cut or (row.reduction == 0 and row.target is None)
        assert row.recipe is None or row.reduction or row.target
        assert (row.target is None) == (row.standin_target is None)
        assert (row.top1_reported is None and not row.printed) == (row.source is None)


@pytest.mark.slow
@every_table
def test_every_reduction_is_within_reach_of_its_recipe(table: Table) -> None:
    """Or the row says how far its recipe reaches, which only those beyond the paper may."""
    for item in make_plan(table, Options(seeds=(0,)), open_images("digits")):
        for job in item.jobs if item.row.recipe is not None else ():
            model = timm.create_model(job.model)
            check_budget(model, job.recipe_used(), job.budget)
        if item.row.standin is None:
            continue
        if (item.row.calibration_images or 0) > 1168:  # all digits that are not held out
            assert item.jobs == ()
            assert "images to calibrate on, of which digits has 1168" in (item.reason or "")
        elif not item.jobs:
            assert item.row.source is None
            assert item.row.reduction >= 0.8 or item.row.recipe in (
                "vbp",
                "spvit-he-gates",
                "spvit-he",
            )  # of MLPs alone
            assert re.search(
                r"out of reach: on this model its recipe reaches from 0 \(not included\) to 0\.\d+$", item.reason or ""
            )


def test_tables_share_their_jobs() -> None:
    """What table 4 rounds is what table 2 compresses, so that nothing long runs twice."""
    plans = {}
    for name, row in (("table2", "deit_b/ours-paper-50"), ("table4", "deit_b/paper-50-8")):
        plan = make_plan(find(name)[0], Options(seeds=(0, 1)), open_images("digits"))
        plans[name] = next(item.jobs for item in plan if item.row.id == row)
    assert [replace(job, bits=None).key for job in plans["table4"]] == [job.key for job in plans["table2"]]


def test_table2_prints_what_the_paper_prints() -> None:
    table, _ = find("table2")
    for row in table.runnable:
        assert row.recipe is None or row.id.endswith(f"-{round(100 * row.reduction)}")
    rows = {row.id: row for row in table.rows}
    for name, printed in PRINTED.items():
        row = rows[name]
        own = (row.params_printed, row.top1_reported) if isinstance(row, Row) else (row.params, row.top1)
        assert own == printed, name


def look_up(target: str) -> list[Row]:
    table, row = find(target)
    return table.select(row)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("tabel2", "unknown table 'tabel2': did you mean 'table2'"),
        ("table2/deit_b/ours-exat-40", "did you mean 'deit_b/ours-exact-40'"),
        ("table2/deit_b/aafm", "cannot be run"),
    ],
)
def test_unknown_names_get_a_hint(target: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        look_up(target)
