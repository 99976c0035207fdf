"""Layers with random statistics: one with correlated inputs, its images kept; one attention module and one MLP."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_vit.records.moments import Moments
from lowrank_vit.records.sites import AttentionSite, MlpSite, Site


@dataclass(frozen=True)
class Sample:
    weight: Tensor  # (n, d)
    inputs: Tensor  # (images, tokens, n)
    gradients: Tensor  # (images, tokens, d)
    moments: Moments

    @property
    def rows(self) -> Tensor:
        return self.inputs.flatten(0, 1)

    @property
    def second(self) -> Tensor:
        return self.rows.T @ self.rows / len(self.rows)

    @property
    def mean(self) -> Tensor:
        return self.rows.mean(0)

    @property
    def covariance(self) -> Tensor:
        centred = self.rows - self.mean
        return centred.T @ centred / len(self.rows)

    def output_error(self, approximation: Tensor) -> float:
        """E||x (W - W^)||^2, summed over the images themselves."""
        return float((self.rows @ (self.weight - approximation)).square().sum() / len(self.rows))


def dense_moments(weight: Tensor, inputs: Tensor, gradients: Tensor) -> Moments:
    """All statistics by their definitions, image by image."""
    images, tokens, _ = inputs.shape
    rows, outputs = inputs.flatten(0, 1), (inputs @ weight).flatten(0, 1)
    weights = 1 / (inputs @ weight).square().sum((1, 2))
    token_weights = weights.repeat_interleave(tokens)
    slopes = gradients.flatten(0, 1)
    energies = slopes.square().sum(1)
    gates = torch.stack([(x * (g @ weight.T)).sum(0) for x, g in zip(inputs, gradients, strict=True)])
    fisher = sum((x.T @ g).square().sum(1) for x, g in zip(inputs, gradients, strict=True))
    sums = {
        "input_sum": rows.sum(0),
        "input_second": rows.T @ rows,
        "output_second": outputs.T @ outputs,
        "normalised_weight": token_weights.sum(),
        "normalised_input_sum": token_weights @ rows,
        "normalised_input_second": sum(w * x.T @ x for w, x in zip(weights, inputs, strict=True)),
        "normalised_output_second": sum(
            w * (x @ weight).T @ (x @ weight) for w, x in zip(weights, inputs, strict=True)
        ),
        "input_abs": rows.abs().sum(0),
        "representative": inputs.sum(0),
        "representative_windows": torch.tensor(float(images), dtype=torch.float64),
        "gradient_second": slopes.T @ slopes,
        "sensitive_weight": energies.sum(),
        "sensitive_tokens": gradients.square().sum((0, 2)),
        "sensitive_input_sum": energies @ rows,
        "sensitive_second": torch.einsum("t,ti,tj->ij", energies, rows, rows),
        "fisher_rows": fisher,
        "gate_fisher": gates.T @ gates,
        "learnt": gates.square().sum(0).sqrt(),
        "gradient_rows": sum(g @ g.T for g in gradients),
    }
    return Moments(images, images * tokens, sums)


def sample(n: int, d: int, *, images: int = 30, tokens: int = 12, seed: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spectrum = torch.logspace(0, -2, n, dtype=torch.float64)
    mixing = torch.linalg.qr(normal(n, n)).Q * spectrum
    inputs = (normal(images, tokens, n) * (0.5 + normal(images, 1, 1).abs()) + normal(n)) @ mixing.T
    gradients = normal(images, tokens, d) @ (torch.linalg.qr(normal(d, d)).Q * torch.logspace(0, -1, d))
    weight = normal(n, d) / n**0.5
    return Sample(weight, inputs, gradients, dense_moments(weight, inputs, gradients))


HEADS, WIDTH, N = 3, 4, 14
INNER = HEADS * WIDTH
ATTENTION = AttentionSite(
    "attn", Site("attn.qkv", N, 3 * INNER, True, HEADS), Site("attn.proj", INNER, N, True), WIDTH, None
)
MLP = MlpSite("mlp", (Site("mlp.fc1", N, INNER, True),), Site("mlp.fc2", INNER, N, True))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed random numbers of the default precision."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normally distributed random numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
