"""Recipe ``best`` end to end on tiny models: whole attention modules and MLPs, exact where nothing is removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from lowrank_vit import InputError, analyse, compress, load, save
from lowrank_vit.attention import Heads, LowRankAttention
from lowrank_vit.calibrate import calibrate
from lowrank_vit.cost import multiply_accumulates, parameter_count
from lowrank_vit.halves import find_halves
from lowrank_vit.layers import SmallMlp
from lowrank_vit.parts import AttentionSite
from tests.models import NAMES, VIT, images, tiny

KINDS = sorted(NAMES)
STEP = 33  # the costliest direction of either tiny model: 2 * 16 + 1


@pytest.mark.parametrize("kind", KINDS)
class TestBest:
    def test_nothing_removed_changes_nothing(self, kind: str) -> None:
        """Float64: all directions and all units, in the modules that are deployed, with windows, biases and masks."""
        model, data = tiny(kind).double(), images(24, kind).double()
        compressed, report = analyse(model, data.split(8), "best").compress(1e-6)
        attention = [module for module in compressed.modules() if isinstance(module, LowRankAttention)]
        assert attention or report["params"]["reduction"] > 0
        smaller, _ = analyse(model, data.split(8), "best").compress(0.0005)
        assert any(isinstance(module, LowRankAttention) for module in smaller.modules())
        with torch.no_grad():
            torch.testing.assert_close(compressed(data), model(data), atol=1e-10, rtol=1e-10)
            torch.testing.assert_close(smaller(data), model(data), atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("reduction", [0.2, 0.4, 0.6])
    def test_the_report_says_what_the_model_is(self, kind: str, reduction: float) -> None:
        model, data = tiny(kind), images(24, kind)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        compressed, report = compress(model, data.split(8), "best", reduction, held_out=[images(16, kind, seed=5)])
        dense = parameter_count(model)
        assert report["params"]["compressed"] == parameter_count(compressed) <= (1 - reduction) * dense
        assert parameter_count(compressed) > (1 - reduction) * dense - STEP
        assert report["macs"]["compressed"] == multiply_accumulates(compressed, data.shape[1:])
        assert json.loads(json.dumps(report, allow_nan=False)) == report
        assert [layer["name"] for layer in report["layers"]] == [site.name for site in find_halves(model)]
        for layer in report["layers"]:
            module = compressed.get_submodule(layer["name"])
            assert layer["params"] == sum(parameter.numel() for parameter in module.parameters())
            if isinstance(module, LowRankAttention):
                assert layer["details"]["query_key"] == sum(module.query_key.widths)
                assert layer["details"]["value"] == layer["rank"] == sum(module.value.widths)
            elif isinstance(module, SmallMlp):
                assert layer["rank"] == layer["details"]["hidden"] == module.fc1.out_features
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key])

    def test_the_error_is_the_deployed_mlps(self, kind: str) -> None:
        model, data = tiny(kind).double(), images(24, kind).double()
        compressed, report = compress(model, data.split(8), "best", 0.4)
        inputs: dict[str, torch.Tensor] = {}
        for layer in report["layers"]:
            model.get_submodule(layer["name"]).register_forward_hook(
                lambda module, x, y, name=layer["name"]: inputs.__setitem__(name, x[0])
            )
        checked = 0
        with torch.no_grad():
            model(data)
            for layer in report["layers"]:
                dense, small = model.get_submodule(layer["name"]), compressed.get_submodule(layer["name"])
                if isinstance(small, SmallMlp):
                    x = inputs[layer["name"]]
                    energy = (dense(x) - dense.fc2.bias).square().sum()
                    error = float((small(x) - dense(x)).square().sum() / energy)
                    assert layer["relative_error"] == pytest.approx(error, rel=2e-3, abs=1e-9)
                    checked += 1
        assert checked

    def test_a_loaded_model_is_the_saved_one(self, kind: str, tmp_path: Path) -> None:
        compressed, _ = compress(tiny(kind), [images(12, kind)], "best", 0.4)
        save(compressed, tmp_path / "small", model_args={k: v for k, v in NAMES[kind][1].items() if k != "num_classes"})
        with torch.no_grad():
            assert torch.equal(load(tmp_path / "small")(images(5, kind)), compressed(images(5, kind)))

    def test_keys_need_no_bias(self, kind: str) -> None:
        """Whatever the keys' bias is, the compressed model is the same."""
        results = []
        for shift in (0.0, 3.0):
            model, data = tiny(kind).double(), images(16, kind).double()
            for site in find_halves(model):
                if isinstance(site, AttentionSite):
                    inner = site.proj.in_features
                    model.get_submodule(site.qkv.name).bias.data[inner : 2 * inner] += shift
            compressed, _ = compress(model, [data], "best", 0.3)
            with torch.no_grad():
                results.append(compressed(data))
        torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)

    def test_two_images_are_enough_to_run(self, kind: str) -> None:
        compressed, _ = compress(tiny(kind), [images(2, kind)], "best", 0.4)
        with torch.no_grad():
            assert torch.isfinite(compressed(images(3, kind))).all()


def test_ragged_heads_split_and_join() -> None:
    heads, x = Heads([3, 0, 2]), torch.randn(2, 4, 5)
    split = heads.split(x)
    assert split.shape == (2, 3, 4, 3)
    assert torch.equal(split[:, 0], x[..., :3])
    assert torch.equal(split[:, 2, :, :2], x[..., 3:])
    assert split[:, 1].abs().sum() == split[:, 2, :, 2].abs().sum() == 0
    assert torch.equal(heads.join(split), x)


def test_statistics_leave_no_graph_behind() -> None:
    """A hook that held its own output would keep every batch's graph in memory."""
    import gc
    import weakref

    model, alive = tiny(), []
    model.blocks[0].attn.qkv.register_forward_hook(lambda m, x, y: alive.append(weakref.ref(y)))
    sites = [linear for site in find_halves(model) for linear in site.linears]
    needs = {site.name: {"head_fisher"} if site.heads else {"gradient_second"} for site in sites}
    calibrate(model, sites, needs, images(8).split(2))
    gc.collect()
    assert len(alive) == 4
    assert all(ref() is None for ref in alive)


def test_what_it_cannot_keep_is_refused_by_name() -> None:
    normalised = timm.create_model("vit_tiny_patch16_224", pretrained=False, **VIT, qk_norm=True)
    with pytest.raises(InputError, match=r"blocks\.0\.attn.*normalises"):
        compress(normalised, [images(4)], "best", 0.3)
    with pytest.raises(InputError, match="leave out --sites"):
        compress(tiny(), [images(4)], "best", 0.3, sites="mlp")
    with pytest.raises(InputError, match="out of reach"):
        compress(tiny(), [images(4)], "best", 0.99)
