"""What every delta promises, and what COMCAT's and LoRA's compute, against dense truths."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_vit.customize.deltas import DELTAS, attentions
from lowrank_vit.customize.deltas.head_products import HeadProducts
from lowrank_vit.customize.deltas.weights import Lora
from lowrank_vit.customize.text_to_image import TextToImage
from tests.support.cases import in_turn
from tests.support.diffusion import METHODS, attached, moved, outputs, small


def kinds(model: TextToImage) -> list[tuple[str, type]]:
    """What is where: modules, and the attentions' processors."""
    found = [(name, type(module)) for name, module in model.unet.named_modules()]
    return found + [(name, type(attention.processor)) for name, attention in attentions(model.unet).items()]


def state(model: TextToImage) -> dict[str, Tensor]:
    parts = nn.ModuleDict({"unet": model.unet, "text": model.text.encoder})
    return {name: tensor.clone() for name, tensor in parts.state_dict().items()}


@pytest.mark.parametrize("name", METHODS)
def test_nothing_changes_at_step_zero(name: str) -> None:
    model, same = small(torch.float32), ["normal 3", "inverted 3", ""]
    before = outputs(model, same)
    attached(model, name)
    change = (outputs(model, same) - before).norm() / before.norm()
    assert change <= 1e-6


@pytest.mark.parametrize(("merged", "name"), in_turn([False, True], METHODS))
def test_detaching_restores_the_base_bit_by_bit(name: str, merged: bool) -> None:
    model = small(torch.float32)
    weights, modules, before = state(model), kinds(model), outputs(model, ["normal 3"])
    customization = moved(attached(model, name))
    assert not torch.equal(outputs(model, ["normal V*"]), before)
    if merged:
        customization.merge()
    customization.detach()
    after = state(model)
    assert weights.keys() == after.keys()
    assert all(torch.equal(weights[key], after[key]) for key in weights)
    assert kinds(model) == modules
    assert torch.equal(outputs(model, ["normal 3"]), before)
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


@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_head_products_are_those_of_the_paper(kind: str) -> None:
    model = small()
    moved(attached(model, "comcat", rank=3, zero_start=False))
    attention = attentions(model.unet)[f"mid_block.attentions.0.transformer_blocks.0.{kind}"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 32, generator=generator, dtype=torch.float64)
    context = x if kind == "attn1" else torch.randn(3, 32, generator=generator, dtype=torch.float64)
    given = None if kind == "attn1" else context[None]
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
    for method, count in (
        (HeadProducts(1), 795_648),
        (HeadProducts(2), 1_591_296),
        (Lora(1), 199_296),
        (Lora(8), 1_594_368),
    ):
        attached = method.attach(unet, torch.Generator())
        assert sum(tensor.numel() for tensor in attached.tensors.values()) == count
        attached.detach()
