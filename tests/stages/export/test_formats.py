"""An exported file does what the model does, at batch sizes that it was not traced at, whatever was compressed how."""

import importlib.util
import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)
from lowrank_vit import InputError, compress, save
from lowrank_vit.cli import main
from lowrank_vit.compression.recipes import RECIPES, get_recipe
from lowrank_vit.modules.low_rank_linear import SmallMlp
from lowrank_vit.stages.export.export import export
from lowrank_vit.stages.export.formats import Run
from lowrank_vit.stages.export.formats.torch_export import TorchExport
from tests.support.models import outputs, tiny

pytestmark = pytest.mark.slow
STANDINS = {
    "digits_deit_small": {"depth": 1},
    "digits_vit_small": {"depth": 1},
    "digits_swin_small": {"depths": (2, 1)},
}
KINDS = ("exact", "best")  # the recipes that deploy single matrices, and whole halves


# every recipe, and both kinds on all architectures: what a graph looks like depends on the modules alone
CASES = [(recipe, name) for recipe in KINDS for name in STANDINS]


CASES += [(recipe, list(STANDINS)[i % 2]) for i, recipe in enumerate(RECIPES) if recipe not in KINDS]


def small(standin: str, recipe: str, **changes: object) -> nn.Module:
    """An untrained stand-in, with every weight at work, compressed."""
    torch.manual_seed(0)
    deeper = {"depth": 2} if recipe == "wd-depth" else {}  # whose steps are blocks
    model = timm.create_model(standin, **STANDINS[standin] | deeper).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return compress(model, [torch.randn(16, 1, 8, 8)], get_recipe(recipe).but(**changes), 0.3)[0]


@pytest.mark.parametrize(("recipe", "standin"), CASES)
def test_torch_export_of_every_recipe(recipe: str, standin: str, tmp_path: Path) -> None:
    model = small(standin, recipe, **({"solver": "closed_form"} if RECIPES[recipe].compensation else {}))
    path = tmp_path / "model.pt2"
    differences = export(model, path, "torch-export")
    assert set(differences) == {1, 3}
    data = torch.randn(5, 1, 8, 8)
    with path.open("rb") as file:
        extra = {"lowrank_vit": ""}
        loaded = torch.export.load(file, extra_files=extra).module()
    torch.testing.assert_close(outputs(loaded, data), outputs(model, data), rtol=1e-5, atol=1e-5)
    assert json.loads(extra["lowrank_vit"])["mean"] == list(model.pretrained_cfg["mean"])


@pytest.mark.parametrize(("recipe", "standin"), [*CASES[2:6]])
def test_onnx(recipe: str, standin: str, tmp_path: Path) -> None:
    import onnxruntime

    model, path = small(standin, recipe), tmp_path / "model.onnx"
    if recipe == "best" and "swin" not in standin:
        attention = model.blocks[0].attn
        assert attention.query_key.widths != attention.value.widths
        assert isinstance(model.blocks[0].mlp, SmallMlp)
    export(model, path, "onnx")
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
    assert json.loads(session.get_modelmeta().custom_metadata_map["lowrank_vit"])["input_size"] == [1, 8, 8]
    data = torch.randn(5, 1, 8, 8)
    found = torch.from_numpy(session.run(None, {"images": data.numpy()})[0])
    torch.testing.assert_close(found, outputs(model, data), rtol=1e-4, atol=1e-5)


def test_a_file_that_differs_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = TorchExport.run

    def wrong(self: TorchExport, path: Path) -> Run:
        run = right(self, path)
        return lambda data: run(data) + (1e-3 if len(data) == 3 else 0)

    monkeypatch.setattr(TorchExport, "run", wrong)
    with pytest.raises(InputError, match=r"differs by 0\.001 at batch 3"):
        export(tiny(), tmp_path / "model", "torch-export")
    assert not list(tmp_path.iterdir())
    nan = tiny()
    nan.head.bias.data[0] = float("nan")
    with pytest.raises(InputError, match="differs by nan"):
        export(nan, tmp_path / "model", "torch-export")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "small", tmp_path / "small.pt2"
    save(small("digits_deit_small", "exact"), folder, model_args=STANDINS["digits_deit_small"])
    arguments = ["export", str(folder), "--format", "torch-export", "--out", str(out)]
    main(arguments)
    text = capsys.readouterr().out
    assert "at batch 1, " in text
    assert f"saved to {out}" in text
    before = out.read_bytes()

    def refused(*given: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(list(given))
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "exists already" in refused(*arguments)
    assert out.read_bytes() == before
    assert "config.json is missing" in refused("export", str(tmp_path), *arguments[2:-1], str(tmp_path / "other"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    line = refused("export", str(folder), "--format", "onnx", "--out", str(tmp_path / "small.onnx"))
    assert line == "error: the format onnx needs onnxscript: pip install 'lowrank-vit[export]'\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "small.pt2"]
