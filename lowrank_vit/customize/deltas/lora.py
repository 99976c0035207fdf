"""LoRA: a product of rank rho added to each of the four matrices of an attention (Hu et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.customize.deltas import DELTAS, Attached, Swaps, attentions, check_rank, drawn

LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


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
        """Return one frozen dense layer that computes the same."""
        layer = nn.Linear(self.dense.in_features, self.dense.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(self.dense.weight + self.up @ self.down, requires_grad=False)
        layer.bias = self.dense.bias
        return layer
