"""What every delta promises, against dense truths, and a delta on disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lowrank_vit.customize.customization import load_delta, save_delta
from lowrank_vit.customize.deltas import DELTAS, attentions
from lowrank_vit.customize.deltas.head_products import HeadProducts
from lowrank_vit.customize.deltas.weights import Lora
from lowrank_vit.customize.text_to_image import TextToImage
from lowrank_vit.runtime.errors import InputError
from tests.support.cases import in_turn
from tests.support.diffusion import METHODS, attached, moved, outputs, small


def kinds(model: TextToImage) -> list[tuple[str, type]]:
    """What is where: modules, and the attentions' processors."""
    found = [(name, type(module)) for name, module in model.unet.named_modules()]
    return found + [(name, type(attention.processor)) for name, attention in attentions(model.unet).items()]


def state(model: TextToImage) -> dict[str, Tensor]:
    parts = nn.ModuleDict({"unet": model.unet, "text": model.text.encoder})
    return {name: tensor.clone() for name, tensor in parts.state_dict().items()}


@pytest.mark.parametrize(("merged", "name"), in_turn([False, True], METHODS))
def test_detaching_restores_the_base_bit_by_bit(name: str, merged: bool) -> None:
    model = small(torch.float32)
    weights, modules, same = state(model), kinds(model), ["normal 3", "inverted 3", ""]
    before = outputs(model, same)
    customization = attached(model, name)
    assert (outputs(model, same) - before).norm() <= 1e-6 * before.norm()  # nothing changes at step zero
    moved(customization)
    assert not torch.equal(outputs(model, ["normal V*"]), before[:1])
    if merged:
        customization.merge()
    customization.detach()
    after = state(model)
    assert weights.keys() == after.keys()
    assert all(torch.equal(weights[key], after[key]) for key in weights)
    assert kinds(model) == modules
    assert torch.equal(outputs(model, same), before)
    assert not any(parameter.requires_grad for module in model.modules() for parameter in module.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_merging_computes_the_same_with_plain_layers(name: str) -> None:
    model = small()
    modules = kinds(model)
    customization = moved(attached(model, name))
    before = outputs(model)
    customization.merge()
    assert (outputs(model) - before).abs().max() <= 1e-12 * before.abs().max()
    assert kinds(model) == modules


@pytest.mark.parametrize("name", METHODS)
def test_only_the_deltas_tensors_are_trained(name: str) -> None:
    model = small()
    customization = attached(model, name)
    outputs_of = model.unet(torch.ones(1, 1, 8, 8).double(), 5, customization.prompt(["normal V*"])).sample
    outputs_of.square().sum().backward()
    with_gradient = {id(p) for part in model.modules() for p in part.parameters() if p.grad is not None}
    trained = {id(tensor) for tensor in customization.trained}
    assert trained >= with_gradient > set()
    assert customization.tensors["word"].requires_grad == DELTAS.get(name).trains_word


def dense_attention(attention: Any, products: Any, x: Tensor, context: Tensor) -> Tensor:
    """Each head by its whole n x n products, the dense one and the added one summed: equation 8."""
    n, heads = attention.to_q.out_features, attention.heads
    d, r = n // heads, len(products.query) // heads
    total = attention.to_out[0].bias.expand(x.shape[0], n).clone()
    for i in range(heads):
        own, new = slice(i * d, (i + 1) * d), slice(i * r, (i + 1) * r)
        logits = attention.to_q.weight[own].T @ attention.to_k.weight[own] + products.query[new].T @ products.key[new]
        values = attention.to_v.weight[own].T @ attention.to_out[0].weight[:, own].T
        values = values + products.value[new].T @ products.out[:, new].T
        total = total + torch.softmax(x @ logits @ context.T / d**0.5, -1) @ (context @ values)
    return total


def test_head_products_are_those_of_the_paper() -> None:
    model = small()
    moved(attached(model, "comcat", rank=3, zero_start=False))
    generator = torch.Generator().manual_seed(0)
    x, text = (torch.randn(n, 32, generator=generator, dtype=torch.float64) for n in (5, 3))
    for kind, context, given in (("attn1", x, None), ("attn2", text, text[None])):
        attention = attentions(model.unet)[f"mid_block.attentions.0.transformer_blocks.0.{kind}"]
        truth = dense_attention(attention, attention.processor, x, context)
        assert (attention(x[None], given)[0] - truth).abs().max() <= 1e-12


def test_lora_adds_products_to_the_four_matrices() -> None:
    model = small()
    attention = attentions(model.unet)["mid_block.attentions.0.transformer_blocks.0.attn1"]
    dense = {name: attention.get_submodule(name).weight.clone() for name in ("to_q", "to_k", "to_v", "to_out.0")}
    customization = moved(attached(model, "lora", rank=2))
    customization.merge()
    for name, weight in dense.items():
        prefix = f"mid_block.attentions.0.transformer_blocks.0.attn1.{name}"
        down, up = customization.tensors[f"{prefix}.down"], customization.tensors[f"{prefix}.up"]
        merged = attention.get_submodule(name).weight
        assert torch.allclose(merged, weight + up @ down, atol=1e-14)
        assert torch.linalg.matrix_rank(merged - weight) == 2


def test_sizes_on_stable_diffusion_1_4() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # the other defaults are those of 1.4
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    counts = ((HeadProducts(1), 795_648), (HeadProducts(2), 1_591_296), (Lora(1), 199_296), (Lora(8), 1_594_368))
    for method, count in counts:
        attached = method.attach(unet, torch.Generator())
        assert sum(tensor.numel() for tensor in attached.tensors.values()) == count
        attached.detach()


def saved(path: Path, name: str = "comcat") -> torch.Tensor:
    """Save a changed delta, and return what the model computes with it."""
    model = small(torch.float32)
    customization = moved(attached(model, name))
    save_delta(customization, path)
    return outputs(model)


@pytest.mark.parametrize("name", METHODS)
def test_a_delta_comes_back_on_another_copy_of_the_base(name: str, tmp_path: Path) -> None:
    expected = saved(tmp_path / "delta.safetensors", name)
    model = small(torch.float32)
    loaded = load_delta(model, tmp_path / "delta.safetensors")
    assert torch.equal(outputs(model), expected)
    assert loaded.new_word == "V*"
    assert loaded.trained == []


def write_damaged(path: Path, how: str) -> None:
    """Spoil a delta's file."""
    with safe_open(path, "pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
        return
    if how == "tensor":
        tensors.popitem()
    changes = {"method": {"method": "comcats"}, "settings": {"settings": '{"ranks": 2}'}}
    save_file(tensors, path, None if how == "plain" else {**about, **changes.get(how, {})})


DAMAGES = {
    "cut": "cannot read .*delta.safetensors",
    "plain": "is not a delta of this format",
    "tensor": "its tensors are not those of comcat",
    "method": "did you mean 'comcat'",
    "settings": "is damaged",
}


def test_a_damaged_file_is_refused_and_the_base_stays(tmp_path: Path) -> None:
    path, model = tmp_path / "delta.safetensors", small(torch.float32)
    before = outputs(model, ["normal 3"])
    for how, said in DAMAGES.items():
        saved(path)
        write_damaged(path, how)
        with pytest.raises(InputError, match=said):
            load_delta(model, path)
        assert torch.equal(outputs(model, ["normal 3"]), before)
