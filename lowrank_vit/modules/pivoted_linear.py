"""A linear layer whose weight holds identities that are neither stored nor counted, and all such layers of a model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.linalg.pairs import pivoted_pair
from lowrank_vit.modules import REPLACEMENTS, Replacement
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.moments import as_float64

ONE, ZERO = 0, 1  # places before the free entries


@REPLACEMENTS.register("pivoted")
class PivotedLinear(Replacement):
    """Compute ``y = x W^T`` in blocks of outputs: r outputs have r inputs, their pivots, that W passes on unchanged.

    ``free``: all other entries of W, row by row; ``pivots``: (d,), the input that equals each output's pivot. W, (d, n), is
    put together at every call, which takes one look-up.
    """

    pivots: Tensor
    places: Tensor
    constants: Tensor

    def __init__(self, in_features: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.in_features, self.out_features, self.widths = in_features, sum(widths), list(widths)
        self.config = {"in_features": in_features, "out_features": self.out_features, "widths": self.widths}
        self.free = nn.Parameter(torch.zeros(sum(width * (in_features - width) for width in widths)))
        pivots = torch.cat([torch.arange(0), *map(torch.arange, self.widths)])
        self.register_buffer("pivots", pivots.to(torch.int32))  # processes exchange no shorter integers
        self.register_buffer("constants", torch.tensor([1.0, 0.0]), persistent=False)
        self.register_buffer("places", torch.empty(0, dtype=torch.long), persistent=False)
        self.find_places()

    def find_places(self) -> None:
        """Find each entry of W among the constants and the free entries. Raises ``ValueError`` for impossible pivots."""
        if self.pivots.is_meta:
            return  # a skeleton, whose pivots come with its weights
        pivots = self.pivots.long()
        passed = torch.zeros(self.out_features, self.in_features, dtype=torch.bool, device=pivots.device)
        start = 0
        for width in self.widths:
            block = pivots[start : start + width]
            chosen = set(block.tolist())
            if len(chosen) < width or not chosen <= set(range(self.in_features)):
                raise ValueError(f"the pivots {block.tolist()} are not {width} of {self.in_features} inputs")
            passed[start : start + width, block] = True
            start += width
        places = torch.full(passed.shape, ZERO, device=pivots.device)
        places[~passed] = torch.arange(self.free.numel(), device=pivots.device) + len(self.constants)
        places[torch.arange(self.out_features, device=pivots.device), pivots] = ONE
        self.places = places

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save the pivots in 16 bits where these suffice."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.in_features < 2**15:
            destination[f"{prefix}pivots"] = destination[f"{prefix}pivots"].to(torch.int16)

    @property
    def weight(self) -> Tensor:
        """Put W together, (d, n)."""
        return torch.cat([self.constants.to(self.free.dtype), self.free])[self.places]

    def set_weight(self, weight: Tensor, pivots: Tensor) -> None:
        """Take the free entries from a weight, (d, n), that has the identities at ``pivots``, (d,)."""
        self.pivots = pivots.to(self.pivots)
        self.find_places()
        self.free.data = weight[self.places >= len(self.constants)].to(self.free)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Load pivots and free entries, and find the places anew; impossible pivots are reported like a wrong shape."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        try:
            self.find_places()
        except ValueError as error:
            rest[-1].append(f"{prefix}pivots: {error}")

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: Any) -> Self:
        """Make a layer of this shape. Raises ``ValueError`` where the blocks are not all outputs."""
        if sum(config["widths"]) != config["out_features"] or max(config["widths"], default=0) > config["in_features"]:
            raise ValueError(f"blocks of {config['widths']} outputs do not make up {config['out_features']}")
        return cls(config["in_features"], config["widths"])


def as_linear(layer: PivotedLinear) -> nn.Linear:
    """Make the plain layer of the same weight."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=layer.free.requires_grad)
    return plain


def as_pivoted(plain: nn.Linear, widths: Sequence[int]) -> tuple[PivotedLinear, list[Tensor]]:
    """Pivot a layer's weight in blocks of ``widths`` outputs; return it, and the factors for the next layer's weights.

    The layer's outputs become others, of which the matrix ``M``, (r, r), of each block makes the old ones:
    ``W_b^T = W'_b^T M_b``. It is float64.
    """
    pivots, weights, squares = [], [], []
    for block in as_float64(plain.weight.detach()).split(list(widths)):
        if not len(block):
            squares.append(block.new_zeros(0, 0))
            continue
        chosen, pivoted, square = pivoted_pair(block.T, torch.eye(len(block)).to(block))
        pivots.append(chosen)
        weights.append(pivoted.T)
        squares.append(square.T)
    layer = PivotedLinear(plain.in_features, widths).to(plain.weight.device, plain.weight.dtype)
    layer.set_weight(torch.cat(weights), torch.cat(pivots))
    layer.free.requires_grad_(plain.weight.requires_grad)
    return layer, squares


def pivot(model: nn.Module) -> dict[str, int]:
    """Pivot the factors of all compressed modules in place; return how many parameters each has lost by it, by name."""
    saved = {}
    for name, module in list(model.named_modules()):
        own = getattr(module, "pivot", None)
        if own is not None:
            before = _count(module)
            own()
            saved[name] = before - _count(module)
    return saved


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def expand(model: nn.Module) -> list[str]:
    """Give all pivoted layers plain weights, in place; return the names of the modules that they belong to."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, PivotedLinear)}
    for name, layer in layers.items():
        replace_module(model, name, as_linear(layer))
    return [name.rpartition(".")[0] for name in layers]


@contextmanager
def expanded(model: nn.Module) -> Iterator[None]:
    """Give pivoted layers plain weights within the block, so that training moves all of them, and pivot them after it."""
    owners = expand(model)
    try:
        yield
    finally:
        for name in owners:
            owner: Any = model.get_submodule(name)
            owner.pivot()
