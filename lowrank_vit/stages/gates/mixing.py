"""Parts that are drawn by learnt probabilities while training; attention that may so become a convolution, or nothing."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from lowrank_vit.modules.conv_mixer import KERNELS, ConvMixer, grid, shared_weights
from lowrank_vit.runtime.hardware import derived_seed
from lowrank_vit.stages.gates.gates import Gate, GatedLayer, Place

START = 1.5  # of the thresholds, whose sigmoid is 0.82
MOMENTUM, SMALLEST = 0.1, 1e-5


class DrawnGate(Gate):
    """Keep each part with the probability ``sigmoid(theta)``; ``noise``, logistic, decides while training.

    Without noise, those of a probability above a half are there. The slope is that of the sigmoid at ``theta + noise``.
    """

    noise: Tensor
    seed: Tensor

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.theta = nn.Parameter(torch.full((place.count,), START))
        self.register_buffer("noise", torch.zeros(place.count))
        self.register_buffer("seed", torch.tensor(0))

    def draw(self, step: int) -> None:
        """Draw the noise of a step, the same in all processes."""
        generator = torch.Generator().manual_seed(derived_seed(int(self.seed), step))
        uniform = torch.rand(self.noise.shape, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        self.noise.copy_(torch.logit(uniform))

    def forward(self) -> Tensor:
        """Return which parts are drawn, (count,), with a straight-through gradient."""
        logits = self.theta + self.noise
        soft = logits.sigmoid()
        return (logits > 0).to(soft) + (soft - soft.detach())

    def expected(self) -> Tensor:
        """Return which parts are open, (count,), with the slope of a second sigmoid, as in the released code."""
        soft = (self.theta.sigmoid() - 0.5).sigmoid()
        return (self.theta > 0).to(soft) + (soft - soft.detach())

    def open(self) -> Tensor:
        """Tell which parts have a probability above a half, (count,)."""
        return self.theta.detach() > 0

    def scores(self) -> Tensor:
        return self.theta.detach().sigmoid()


class SharedNorm(nn.Module):
    """Normalise (B, s, h, w) by the batch statistics of all processes together, so that their number changes nothing."""

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the batch's statistics in training, else by those of all batches so far."""
        if not self.training:
            return self.scaled(x, self.mean, self.variance)
        moments = torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))])
        if dist.is_available() and dist.is_initialized():
            moments = all_reduce(moments) / dist.get_world_size()
        mean, variance = moments[0], (moments[1] - moments[0].square()).clamp_min(0)
        with torch.no_grad():
            self.mean.lerp_(mean.to(self.mean), MOMENTUM)
            self.variance.lerp_(variance.to(self.variance), MOMENTUM)
        return self.scaled(x, mean, variance)

    def scaled(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Normalise by a mean and a variance, (s,)."""
        scale = self.weight * (variance + SMALLEST).rsqrt()
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]

    def folded(self, down: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight, (s, n, k, k), and the bias of a convolution that normalises what it makes."""
        scale = self.weight * (self.variance + SMALLEST).rsqrt()
        return down * scale[:, None, None, None], (bias - self.mean) * scale + self.bias


class MixerGate(DrawnGate):
    """Hold three ordered gates: the first keeps a 1x1 convolution at least, the second a 3x3 one, the third attention."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        heads, width = place.shape
        self.mixture = nn.Parameter(torch.ones(heads, 9))
        self.norms = nn.ModuleDict({str(kernel): SharedNorm(width) for kernel in KERNELS[1:]})

    def around(self, layer: nn.Module) -> GatedLayer:
        return MixedAttention(layer)

    def forward(self) -> Tensor:
        """Return which gates are drawn, each together with all before it, (3,)."""
        return super().forward().cumprod(0)

    def expected(self) -> Tensor:
        """Return which gates are open, each together with all before it, (3,)."""
        return super().expected().cumprod(0)

    def open(self) -> Tensor:
        """Tell which gates have a probability above a half, each together with all before it, (3,)."""
        return super().open().cumprod(0).bool()

    def tensors(self) -> dict[str, Tensor]:
        """Return what a mixer is made from, besides the weights of attention."""
        return {name: value.detach().cpu().clone() for name, value in self.state_dict().items()}

    def weights(self, attention: Any, kernel: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights of a mixer: down, its bias, and up."""
        heads, width = self.place.shape
        n = attention.qkv.in_features
        bias = attention.qkv.bias
        values = attention.qkv.weight[2 * n :].unflatten(0, (heads, width))
        biases = values.new_zeros(heads, width) if bias is None else bias[2 * n :].unflatten(0, (heads, width))
        return shared_weights(values, biases, attention.proj.weight.unflatten(1, (heads, width)), self.mixture, kernel)

    def mixer(self, attention: Any) -> nn.Module:
        """Return what the open gates leave of an attention module: itself, or a mixer with its norm folded in."""
        count = int(self.open().sum())
        if count == len(KERNELS):
            return attention
        proj, kernel = attention.proj, KERNELS[count]
        if not kernel:
            return ConvMixer(proj.out_features, self.place.shape[1], 0)
        down, bias, up = self.weights(attention, kernel)
        norm = self.norms[str(kernel)]
        assert isinstance(norm, SharedNorm)
        down, bias = norm.folded(down, bias)
        up_bias = up.new_zeros(proj.out_features) if proj.bias is None else proj.bias
        return ConvMixer.of(down, bias, up, up_bias)


class MixedAttention(GatedLayer):
    """Mix attention, its convolutions, and nothing, of which ordered gates take one."""

    def forward(self, x: Tensor, **given: Any) -> Tensor:
        """Map x: (B, 1 + T, n) to the same shape."""
        gate = self.inputs
        assert isinstance(gate, MixerGate)
        one, three, attention = gate()
        convolved = [torch.cat([x[:, :1], self._convolved(gate, x, kernel)], 1) for kernel in KERNELS[1:]]
        y: Tensor = attention * self.layer(x, **given) + (three - attention) * convolved[1]
        return y + (one - three) * convolved[0] + (1 - one) * x

    def _convolved(self, gate: MixerGate, x: Tensor, kernel: int) -> Tensor:
        down, bias, up = gate.weights(self.layer, kernel)
        inner = F.relu(gate.norms[str(kernel)](F.conv2d(grid(x[:, 1:]), down, bias, padding=kernel // 2)))
        return F.linear(inner.flatten(2).transpose(1, 2), up, self.layer.proj.bias)
