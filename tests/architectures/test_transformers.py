"""Models of Hugging Face's transformers: the same promises as for timm's; and trained like timm's, as torchvision's are."""

import copy
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from typing import Any

import pytest

from lowrank_vit import analyse, compress, distill, finetune, get_recipe, load, save
from lowrank_vit.__main__ import main
from lowrank_vit.architectures.canonical import canonical
from lowrank_vit.models import load_model
from lowrank_vit.modules.counting import input_size, parameter_count
from lowrank_vit.modules.predicting import predict
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.stages.export.export import export
from tests.support.cases import few
from tests.support.hugging_face import HUGGING_FACE
from tests.support.refits import check_walk
from tests.support.torch_kinds import TORCH

each = pytest.mark.parametrize("kind", few(HUGGING_FACE))
BEST = get_recipe("heads")


@cache
def made(kind: str) -> tuple[nn.Module, Tensor]:
    """A model, which nobody changes, and its images."""
    return HUGGING_FACE[kind].make(), HUGGING_FACE[kind].images(6)


def outputs(model: nn.Module, data: Tensor) -> Tensor:
    with torch.no_grad():
        return predict(model, data)


@each
class TestEveryClass:
    def test_timms_parts_compute_the_same(self, kind: str) -> None:
        model, data = made(kind)
        exchanged = canonical(copy.deepcopy(model))
        assert parameter_count(exchanged) == parameter_count(model)
        torch.testing.assert_close(outputs(exchanged, data), outputs(model, data), rtol=1e-10, atol=1e-10)
        assert len(input_size(model) or ()) == 3

    def test_steps_are_the_whole_way(self, kind: str) -> None:
        model, data = canonical(copy.deepcopy(made(kind)[0])), made(kind)[1]
        check_walk(model, data, outputs(model, data))

    @pytest.mark.slow
    def test_best_takes_it_whole(self, kind: str) -> None:
        """Heads' logits and values, and hidden units; measured and refitted, by the objective that its outputs have."""
        model, data = made(kind)
        small, report = compress(model, [data[:3], data[3:]], BEST, 0.1, device="cpu")
        assert parameter_count(small) <= 0.9 * parameter_count(model)
        assert type(small) is type(model)
        assert "fallback" not in report
        assert report["recipe_fields"]["objective"] == ("classification" if HUGGING_FACE[kind].classes else "features")
        assert report["measured_losses"]
        assert report["refit"]["ridges"]

    def test_all_sizes_are_the_model_as_it_was(self, kind: str) -> None:
        model, data = made(kind)
        analysis = analyse(model, [data], BEST.but(refit=False, measured=0), device="cpu")
        names = {curve.name.rpartition(".")[2] for curve in analysis.curves}
        assert {"query_key", "value", "hidden"} <= names
        whole = RankPlan({curve.name: len(curve.errors) - 1 for curve in analysis.curves})
        expected = outputs(model, data)
        torch.testing.assert_close(outputs(analysis.apply(whole)[0], data), expected, rtol=1e-8, atol=1e-8)

    @pytest.mark.slow
    def test_it_is_saved_and_loaded_and_exported(self, kind: str, tmp_path: Path) -> None:
        """Without a word on how it was made: the folder holds the class and its configuration."""
        model, data = made(kind)
        small, _ = compress(copy.deepcopy(model).float(), [data.float()], BEST.but(refit=False, measured=0), 0.2)
        save(small, tmp_path / "small")
        again = load(tmp_path / "small")
        assert torch.equal(outputs(again, data), outputs(small, data))
        save(again, tmp_path / "again")
        assert export(again, tmp_path / "file", "torch-export")[3] < 1e-4


class TestFolders:
    """What a folder says is not trusted."""

    def folder(self, path: Path) -> Path:
        model, data = made("vit")
        small, _ = compress(copy.deepcopy(model).float(), [data.float()], "svd", 0.1, device="cpu")
        save(small, path / "small")
        return path / "small"

    def test_no_kernel_and_no_code_is_named(self, tmp_path: Path) -> None:
        from lowrank_vit.models.hugging_face import make, recorded

        arguments = recorded(made("vit")[0]) or {}
        bad = {"_attn_implementation": "owner/kernel", "auto_map": {"AutoModel": "code.Model"}, "surprise": 1}
        config = make(**{**arguments, "config": {**arguments["config"], **bad}}).config
        assert config._attn_implementation == "sdpa"
        assert not hasattr(config, "auto_map")
        assert not hasattr(config, "surprise")
        saved = json.loads((self.folder(tmp_path) / "config.json").read_text())
        assert saved["model_args"]["kind"] == "ViTForImageClassification"
        assert not bad.keys() & saved["model_args"]["config"].keys()


TRAINED: dict[str, Any] = {
    **{name: HUGGING_FACE[name] for name in ("vit", "deit", "deit, distilled", "swin", "dinov2, swiglu")},
    **{name: TORCH[name] for name in ("torchvision's vit", "torchvision's swin")},
}


def logits(model: nn.Module, data: Tensor) -> Tensor:
    outputs = model(data)
    return outputs if isinstance(outputs, Tensor) else outputs.logits


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINED)
def test_it_is_trained_in_place_and_learns(kind: str) -> None:
    model, data = TRAINED[kind].make().float(), TRAINED[kind].images(8).float()
    small, _ = compress(model, [data], "best", 0.25, device="cpu")
    with torch.no_grad():
        target, before = logits(model, data), logits(small, data)
    labels = (logits(small, data).argmax(1) + 1) % 10
    tuned = copy.deepcopy(small)
    result = finetune(tuned, [(data, labels)], epochs=12, lr=1e-2, progress=False)
    loss = nn.functional.cross_entropy
    with torch.no_grad():
        assert loss(logits(tuned, data), labels) < 0.7 * loss(before, labels)
    assert 0 < result.describe()["trainable_share"] < 0.6
    worse, _ = compress(model, [data], "svd", 0.4, device="cpu")
    with torch.no_grad():
        before = logits(worse, data)
    options: dict[str, Any] = {"epochs": 12, "lr": 3e-3, "batch_size": 4, "flips": False, "progress": False}
    distilled = distill(worse, model, data, **options)
    with torch.no_grad():
        after = logits(distilled.model, data)
    assert (after - target).norm() < 0.7 * (before - target).norm()


@pytest.mark.slow
def test_a_folder_of_transformers_goes_all_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, small = tmp_path / "dense", tmp_path / "small"
    model: Any = HUGGING_FACE["vit"].make().float()
    model.save_pretrained(source)
    few = ["--calibration-samples", "32", "--held-out-samples", "0", "--data", "digits", "--device", "cpu"]
    main(["compress", "--model", f"hf:{source}", *few, "--reduction", "0.2", "--out", str(small)])
    data = ["--data", "digits", "--device", "cpu", "--epochs", "1"]
    main(["finetune", str(small), *data, "--distill", "--out", str(tmp_path / "tuned")])
    main(["distill", str(small), *data, "--calibration-samples", "40", "--out", str(tmp_path / "distilled")])
    for folder in ("tuned", "distilled"):
        assert type(load(tmp_path / folder)) is type(load_model(f"hf:{source}"))
    again = tmp_path / "tuned again"
    save(load(tmp_path / "tuned"), again)
    assert load(again).config.to_dict() == load(tmp_path / "tuned").config.to_dict()
