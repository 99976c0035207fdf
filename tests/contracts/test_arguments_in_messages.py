"""A message names an argument as the caller wrote it: in Python as Python, in the shell as an option."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import lowrank_vit
from lowrank_vit.cli.command_line import _log
from lowrank_vit.data import open_source
from lowrank_vit.models import load_model
from lowrank_vit.runtime.errors import InputError
from tests.support.commands import STANDIN, refused
from tests.support.image_folders import write
from tests.support.kinds import KINDS

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z0-9](?![\w-]*=)")
X = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
CALLS: dict[str, Callable[[nn.Module], object]] = {
    "by `sites=`": lambda model: lowrank_vit.compress(model, [X], "svd", 0.5, sites="nothing"),
    'try `device="cpu"`': lambda model: lowrank_vit.compress(model, [X], "svd", 0.5, device="cuda:77"),
    "`checkpoint=FILE`": lambda _: load_model(STANDIN, arguments={"depth": 2}),
    "(`dense=`)": lambda model: lowrank_vit.evaluate(model.reset_classifier(0) or model, [X]),  # type: ignore[operator]
    "(`teacher=`)": lambda model: lowrank_vit.finetune(model, [(X, torch.zeros(8).long())], hard_teacher=True),
    "`limit=`": lambda model: lowrank_vit.evaluate(model, []),
}


def test_python_is_told_of_arguments() -> None:
    for said, call in CALLS.items():
        with pytest.raises(InputError, match=re.escape(said)) as refusal:
            call(KINDS["vit"].make().float())
        assert not OPTION.search(str(refusal.value))


def test_python_is_warned_of_arguments(tmp_path: Path) -> None:
    for name in ("b10", "b9"):
        write(tmp_path / "train" / name, 1)
    with pytest.warns(UserWarning, match='choose by `class_order="natural"`'):
        open_source(f"imagefolder:{tmp_path}")


def test_the_shell_is_told_of_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = ["compress", "--model", STANDIN, "--data", "digits", "--reduction", "0.4", "--out", tmp_path / "out"]
    assert "try --device cpu or --device auto" in refused(capsys, *given, "--device", "cuda:77")
    assert "leave it out, or pass --checkpoint FILE" in refused(capsys, *given, "--model-args", "depth=2")
    tune = ["finetune", "deit_tiny_4mib", "--data", "digits", "--out", tmp_path / "out", "--hard-teacher"]
    assert "--hard-teacher and --align-weight imitate the dense model: give --distill" in refused(capsys, *tune)


def test_warnings_and_log_lines_in_the_shell_have_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", None)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    with contextlib.redirect_stderr(io.StringIO()) as said:
        _log(["class_order"], logging.WARNING)
        logging.getLogger("lowrank_vit.x").warning("give `class_order=%s`, or `other=1`", "natural")
    assert said.getvalue() == "give --class-order natural, or `other=1`\n"
    line = warnings.formatwarning(UserWarning('give `class_order="text"`'), UserWarning, "x", 1)
    assert line == "warning: give --class-order text\n"
