"""Small problems with dense float64 truths, and a model whose layers see inputs of every form that timm's do."""

import torch
from torch import Tensor, nn

from lowrank_vit.stages.compensate import COMPENSATIONS, Compensation
from tests.support.models import inputs_of

SHAPES = [(24, 24), (12, 36), (36, 12), (10, 7)]


def moment_of(n: int, rank: int, seed: int) -> Tensor:
    """A correlated second moment of the given rank, (n, n)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, rank, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(0, -1.5, rank, dtype=torch.float64) @ torch.randn(rank, n, generator=generator).double()
    return x.T @ x / x.square().sum()


def problem(n: int, d: int, *, deficient: bool = False, seed: int = 0, layers: int = 1) -> tuple[Tensor, Tensor]:
    """Residuals (L, n, d) and moments (L, n, n)."""
    generator = torch.Generator().manual_seed(seed)
    residual = torch.randn(layers, n, d, generator=generator, dtype=torch.float64)
    return residual, torch.stack([moment_of(n, n // 2 if deficient else n, seed + i) for i in range(layers)])


def root(moment: Tensor) -> Tensor:
    """T with ``T^T T = M``, by eigenvalues: another way than the code's."""
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.clamp_min(0).sqrt()).T


def loss(z: Tensor, residual: Tensor, moment: Tensor) -> float:
    """``||L^T (Z - R)||_F^2`` of one layer."""
    return float((root(moment) @ (z - residual)).square().sum())


class Toy(nn.Module):
    """Linear layers that see tokens, windows (B * 4, 4, n) and feature maps (B, 4, 4, n). Images: (B, 1, 4, 4)."""

    def __init__(self, n: int = 6, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(1, n)
        self.position = nn.Parameter(torch.randn(16, n))
        self.tokens, self.more_tokens = nn.Linear(n, n), nn.Linear(n, n, bias=False)
        self.windows = nn.Linear(n, 3 * n)
        self.map = nn.Linear(3 * n, n)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1)[..., None]) + self.position
        x = x + self.more_tokens(torch.tanh(self.tokens(x)))
        windows = x.view(-1, 2, 2, 2, 2, x.shape[-1]).transpose(2, 3).reshape(-1, 4, x.shape[-1])
        return self.map(torch.tanh(self.windows(windows)).view(len(x), 4, 4, -1))


LAYERS = ("tokens", "more_tokens", "windows", "map")


def toy_images(count: int = 16) -> Tensor:
    """Images (count, 1, 4, 4) of very different strength, float64."""
    generator = torch.Generator().manual_seed(7)
    strength = torch.logspace(-1, 1, count, dtype=torch.float64)[:, None, None, None]
    return strength * torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64)


def toy_inputs(model: Toy, images: Tensor) -> dict[str, Tensor]:
    """``A_i = X_i / ||X_i W||_F`` of every layer, (images, tokens, n): one image at a time, from the weights."""
    found: dict[str, list[Tensor]] = {name: [] for name in LAYERS}
    for image in images:
        for name, x in inputs_of(model, LAYERS, image[None]).items():
            rows = x.flatten(0, -2)
            found[name].append(rows / (rows @ getattr(model, name).weight.detach().T).norm())
    return {name: torch.stack(own) for name, own in found.items()}


def toy_problem(model: Toy, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Residuals of the best rank-2 factors of the weights, and M."""
    residuals, moments = {}, {}
    for name, a in toy_inputs(model, images).items():
        weight = getattr(model, name).weight.detach().T
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        residuals[name] = weight - u[:, :2] * s[:2] @ vt[:2]
        moments[name] = torch.einsum("itn,itm->nm", a, a) / len(a)
    return residuals, moments


def make(kind: str, budget: float = 0.2) -> Compensation:
    return COMPENSATIONS.get(kind)(budget=budget)
