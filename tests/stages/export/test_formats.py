"""Every format of exported files does what the model does, at batch sizes that it was not traced at, however compressed."""

import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)
from lowrank_vit import InputError, compress, fewer_tokens, get_recipe, save
from lowrank_vit.cli import main
from lowrank_vit.compression.recipes import RECIPES
from lowrank_vit.modules.embeddings import Patches
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.low_rank_linear import LowRankLinear, SmallMlp
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.runtime.extras import EXTRA_OF
from lowrank_vit.stages.compensate import COMPENSATIONS
from lowrank_vit.stages.export.export import export
from lowrank_vit.stages.export.formats import EXPORTERS, Run, files
from lowrank_vit.stages.export.formats.torch_export import TorchExport
from lowrank_vit.stages.export.straightened import EvenAttention, straightened
from tests.support.cases import few
from tests.support.commands import refused
from tests.support.kinds import KINDS as MODELS
from tests.support.models import images, outputs, stirred, tiny
from tests.support.sources import ROOT

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
    model = stirred(timm.create_model(standin, **STANDINS[standin] | deeper).eval())
    return compress(model, [torch.randn(16, 1, 8, 8)], get_recipe(recipe).but(**changes), 0.3)[0]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "small", tmp_path / "small.pt2"
    save(small("digits_deit_small", "exact"), folder, model_args=STANDINS["digits_deit_small"])
    arguments = ["export", str(folder), "--format", "torch-export", "--out", str(out)]
    main(arguments)
    text = capsys.readouterr().out
    assert "at batch 1, " in text
    assert f"saved to {out}" in text
    before = out.read_bytes()

    assert "exists already" in refused(capsys, *arguments)
    assert out.read_bytes() == before
    assert "config.json is missing" in refused(capsys, "export", tmp_path, *arguments[2:-1], tmp_path / "other")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    line = refused(capsys, "export", folder, "--format", "onnx", "--out", tmp_path / "small.onnx")
    assert line == "error: the format onnx needs onnxscript: pip install 'lowrank-vit[export]'"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "small.pt2"]


FORMATS = EXPORTERS.names()


def test_formats_have_suffixes_of_their_own_and_an_extra_installs_what_they_need() -> None:
    suffixes = {EXPORTERS.get(name).suffix for name in FORMATS}
    assert len(suffixes) == len(FORMATS) >= 2
    assert all(suffix.startswith(".") for suffix in suffixes)
    assert {package for name in FORMATS for package in EXPORTERS.get(name).packages} <= set(EXTRA_OF)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", FORMATS)
def test_no_folder_of_this_machine_is_in_the_file(file_format: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{EXPORTERS.get(file_format).suffix}"
    export(tiny(), path, file_format)
    parts = [each.read_bytes() for each in tmp_path.iterdir()]
    assert len(parts) == len(files(EXPORTERS.get(file_format)(), path))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts += [archive.read(name) for name in archive.namelist()]
    for folder in (ROOT, Path(torch.__file__).parents[1], Path(timm.__file__).parents[1]):
        assert not any(str(folder).encode() in part for part in parts)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", FORMATS)
def test_every_z(file_format: str, tmp_path: Path) -> None:
    """One model with a Z of each kind, each in a layer of its own."""
    model, names = tiny(), ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
    for z, name in zip(COMPENSATIONS.names(), names, strict=True):
        recipe = get_recipe("paper").but(compensation=z, solver="closed_form", allocator="uniform")  # none stays dense
        layer = compress(tiny(), [images(12)], recipe, 0.3)[0].get_submodule(f"blocks.0.{name}")
        assert isinstance(layer, LowRankLinear)
        assert (layer.correction is None) == (z == "low_rank")  # that one folds
        replace_module(model, f"blocks.0.{name}", layer)
    assert export(model, tmp_path / f"model{EXPORTERS.get(file_format).suffix}", file_format)[3] < 1e-4


STRAIGHT = few(["vit", "beit, shared", "swin", "beit"])  # bias of positions, masks of windows, a class token


def reduced(kind: str, **changes: object) -> tuple[nn.Module, Tensor]:
    made, data = MODELS[kind].make(), MODELS[kind].images(6)
    return compress(made, [data], get_recipe("best").but(**changes), 0.4, device="cpu")[0], data


def of(model: nn.Module, kind: type) -> list[nn.Module]:
    return [module for module in model.modules() if type(module) is kind]


@pytest.mark.parametrize("kind", STRAIGHT)
def test_the_function_stays(kind: str) -> None:
    model, data = reduced(kind)
    attentions = of(model, LowRankAttention)
    straight = straightened(model, data.shape[1])
    assert len(of(straight, EvenAttention)) == len(attentions) > 0
    assert not of(straight, LowRankAttention)
    assert len(of(straight, Patches)) == 1
    torch.testing.assert_close(outputs(straight, data), outputs(model, data), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("query_key", "value"), [([3, 1, 4], [2, 6, 1]), ([0, 2, 0], [3, 0, 0]), ([0, 0], [3, 1])])
def test_heads_of_any_widths(query_key: list[int], value: list[int]) -> None:
    torch.manual_seed(0)
    attention = LowRankAttention(12, query_key, value, 0.7).double().eval()
    even, x = EvenAttention.of(attention), torch.randn(2, 5, 12, dtype=torch.float64)
    live = sum(any(widths) for widths in zip(query_key, value, strict=True))
    assert even.query.out_features == live * max(1, *query_key)  # not the widest of both, as in torch's fused attention
    assert even.values.out_features == live * max(value)
    torch.testing.assert_close(even(x), attention(x))
    bias = torch.randn(live, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(even(x, attn_mask=bias), attention(x, attn_mask=bias))
    torch.testing.assert_close(even(x, is_causal=True), attention(x, is_causal=True))


@pytest.mark.parametrize(("rule", "options"), [("tome", {"r": 2}), ("evit", {"keep": 0.7})])
def test_with_fewer_tokens(rule: str, options: dict) -> None:
    model, data = reduced("vit")
    fewer = fewer_tokens(model, rule, **options)
    straight = straightened(fewer, data.shape[1])
    assert of(straight, EvenAttention)
    torch.testing.assert_close(outputs(straight, data), outputs(fewer, data), rtol=1e-9, atol=1e-9)
