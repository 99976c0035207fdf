"""Methods that train weights, or a product beside them: LoRA, Custom Diffusion, DreamBooth; textual inversion trains none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.customize.deltas import DELTAS, Attached, Swaps, attentions, check_rank, drawn

LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


@DELTAS.register("custom_diffusion")
@dataclass(frozen=True)
class KeyValue:
    """Train keys and values of the attentions to the prompt, and the new word's vector (Kumari et al. 2022).

    Without that paper's regularisation images.
    """

    learning_rate: float = 1e-5

    trains_word: ClassVar[bool] = True

    def attach(self, unet: nn.Module, generator: torch.Generator) -> Attached:
        found = attentions(unet, "cross")
        return unfrozen(
            {
                f"{name}.{layer}.weight": getattr(found[name], layer).weight
                for name in found
                for layer in ("to_k", "to_v")
            }
        )


@DELTAS.register("dreambooth")
@dataclass(frozen=True)
class Everything:
    """Train all weights of the U-Net (Ruiz et al. 2022), without that paper's prior preservation."""

    learning_rate: float = 5e-6

    trains_word: ClassVar[bool] = False

    def attach(self, unet: nn.Module, generator: torch.Generator) -> Attached:
        return unfrozen(dict(unet.named_parameters()))


@DELTAS.register("textual_inversion")
@dataclass(frozen=True)
class WordAlone:
    """Train the new word's vector alone (Gal et al. 2022)."""

    learning_rate: float = 5e-4

    trains_word: ClassVar[bool] = True

    def attach(self, unet: nn.Module, generator: torch.Generator) -> Attached:
        """Leave the U-Net as it is."""
        return unfrozen({})


def unfrozen(parameters: Mapping[str, nn.Parameter]) -> Attached:
    """Train parameters in place, so that merging changes nothing; detaching copies the former values back."""
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)

    @torch.no_grad()
    def detach() -> None:
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
            parameter.requires_grad_(False)

    return Attached(dict(parameters), lambda: None, detach)


@DELTAS.register("lora")
@dataclass(frozen=True)
class Lora:
    """Add ``B A`` to to_q, to_k, to_v and to_out: A (rho, in) drawn, B (out, rho) zero, so nothing changes at step 0.

    On Stable Diffusion 1.4 these are 199,296 rho parameters: rho = 8 costs what two products of each head do (comcat, r = 2).
    Merged, the sum of matrices stands in the dense place, and inference costs nothing more.
    """

    rank: int = 4
    layers: str = "all"
    learning_rate: float = 1e-4

    trains_word: ClassVar[bool] = False

    def attach(self, unet: nn.Module, generator: torch.Generator) -> Attached:
        check_rank(self.rank)
        swaps, added = Swaps(), {}
        for name, attention in attentions(unet, self.layers).items():
            for layer in LAYERS:
                parent, _, last = layer.rpartition(".")
                dense = attention.get_submodule(layer)
                added[f"{name}.{layer}"] = LinearWithProduct(dense, self.rank, generator)
                swaps.put(attention.get_submodule(parent), last, added[f"{name}.{layer}"])

        def merge() -> None:
            for name, layer in added.items():
                parent, _, last = name.rpartition(".")
                swaps.put(unet.get_submodule(parent), last, layer.merged())

        tensors = {f"{name}.{part}": getattr(layer, part) for name, layer in added.items() for part in ("down", "up")}
        return Attached(tensors, merge, swaps.undo)


class LinearWithProduct(nn.Module):
    """Add a trained product to a frozen linear layer: ``y = W x + b + B A x``."""

    def __init__(self, dense: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.dense = dense
        self.down = drawn((rank, dense.in_features), generator, dense.weight)
        self.up = nn.Parameter(torch.zeros(dense.out_features, rank).to(dense.weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) + F.linear(F.linear(x, self.down), self.up)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        layer = nn.Linear(self.dense.in_features, self.dense.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(self.dense.weight + self.up @ self.down, requires_grad=False)
        layer.bias = self.dense.bias
        return layer
