"""Models of Hugging Face's transformers: the same promises as for timm's, and the same numbers where both have one model."""

import copy
import json
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

from lowrank_vit import analyse, compress, get_recipe, load, save
from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.canonical import canonical
from lowrank_vit.architectures.step_inputs import enter, run_step
from lowrank_vit.modules.counting import input_size, parameter_count
from lowrank_vit.modules.predicting import predict
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.stages.export.export import export
from tests.support.cases import few
from tests.support.hugging_face import HUGGING_FACE, Kind

each = pytest.mark.parametrize("kind", few(HUGGING_FACE, 3))
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
        """Every branch adds what it is said to, of images whose last windows are padded, too; the head is the model's."""
        model, data = canonical(copy.deepcopy(made(kind)[0])), made(kind)[1]
        family = family_of(model)
        steps = family.steps(model)
        with torch.no_grad():
            given, inputs = enter(model, steps, [data[:2], data[2:]])
            x = torch.cat(list(inputs))
            for name, step in steps.items():
                after, branches = x, family.branches(step)
                for branch in branches:
                    added, made_of = branch.with_inputs(after, **given[name])
                    after = after + added
                    tokens = branch.tokens(added)
                    expected = branch.output_layer(made_of).reshape(tokens.shape)
                    there = branch.tokens(torch.ones_like(added))
                    torch.testing.assert_close(tokens, (1 if branch.scale is None else branch.scale) * expected * there)
                    torch.testing.assert_close(branch.stream(tokens, added.shape), added)
                x = run_step(step, x, given[name])
                torch.testing.assert_close(after if branches else x, x)
            torch.testing.assert_close(family.head(model, x), outputs(model, data))

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


def twins() -> tuple[nn.Module, nn.Module, Tensor]:
    """timm's DeiT and transformers' ViT with the same weights, in either one's own layout, and images."""
    kind = Kind("ViTForImageClassification", "ViTConfig", classes=True)
    theirs = kind.make()
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2}
    ours = timm.create_model("deit_tiny_patch16_224", num_classes=10, **arguments).double().eval()
    ours.load_state_dict(timm_weights(theirs.state_dict()))
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-12  # timm's is 1e-6
    return ours, theirs, kind.images(12)


def timm_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of transformers' ViT by the names that timm has."""
    renamed = {"embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed"}
    renamed |= {"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm_before": "norm1"}
    renamed |= {"layernorm_after": "norm2", "layernorm": "norm", "attention.o_proj": "attn.proj", "classifier": "head"}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.removeprefix("vit.").replace("layers.", "blocks.", 1)
        if "_proj." in name and "o_proj" not in name:
            continue
        for old, new in renamed.items():
            name = name.replace(old, new)
        found[name] = tensor
    for place in range(2):
        for part in ("weight", "bias"):
            rows = [state[f"vit.layers.{place}.attention.{layer}_proj.{part}"] for layer in "qkv"]
            found[f"blocks.{place}.attn.qkv.{part}"] = torch.cat(rows)
    return found


def test_both_libraries_forms_of_a_model_become_the_same() -> None:
    """By ``best`` with all that it does: predicted and measured losses, sizes, ridges, outputs."""
    ours, theirs, data = twins()
    torch.testing.assert_close(outputs(ours, data), outputs(theirs, data))
    pairs = [compress(model, [data[:6], data[6:]], BEST, 0.3, device="cpu") for model in (ours, theirs)]
    (one, told), (two, said) = pairs
    for first, second in zip(told["layers"], said["layers"], strict=True):
        assert first["rank"] == second["rank"]
        assert first["details"] == pytest.approx(second["details"], rel=1e-6)
    assert told["refit"]["ridges"].values() != []
    assert list(told["refit"]["ridges"].values()) == list(said["refit"]["ridges"].values())
    assert told["params"] == said["params"]
    assert told["macs"] == said["macs"]
    torch.testing.assert_close(outputs(one, data), outputs(two, data), rtol=1e-6, atol=1e-6)


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
