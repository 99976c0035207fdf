"""Measure what linear, token-wise units could bring at most: a module's own input beside its heads, or its hidden units.

Every output layer of the smaller model also reads what its module is given, token by token, before all of them are refitted.
None of it is counted, so any unit that is linear in a token, at whatever price, brings less. As for settings, neither labels
nor images that are evaluated are looked at.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.jobs.measure import MEASURES, Measure
from experiments.measures.divergence import DIGITS, forward_passes
from lowrank_vit import OutputRefit, analyse, compare
from lowrank_vit.data import ImageData
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.modules.low_rank_linear import SmallMlp
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.images import Images

OUTPUTS: dict[type[nn.Module], str] = {LowRankAttention: "proj", SmallMlp: "fc2"}


class Beside(nn.Module):
    """Compute an output layer, (k, d), that also reads what the module around it is given, (..., n).

    The weights of that input start at zero.
    """

    def __init__(self, module: nn.Module, layer: nn.Linear, width: int) -> None:
        super().__init__()
        self.in_features = layer.in_features  # for the module around it
        self.up = nn.Linear(layer.in_features + width, layer.out_features).to(layer.weight)
        with torch.no_grad():
            self.up.weight.zero_()[:, : layer.in_features] = layer.weight
            self.up.bias.copy_(layer.bias)
        self.given: Tensor | None = None
        module.register_forward_pre_hook(lambda module, inputs: setattr(self, "given", inputs[0]))

    def forward(self, h: Tensor) -> Tensor:
        """Map h: (..., k) to (..., d)."""
        assert self.given is not None
        y: Tensor = self.up(torch.cat([h, self.given], -1))
        return y


def widen(model: nn.Module, kind: type[nn.Module]) -> int:
    """Let the output layers of all modules of a kind also read the modules' inputs, in place; count the weights added."""
    added = 0
    for name, module in [each for each in model.named_modules() if type(each[1]) is kind]:
        layer = module.get_submodule(OUTPUTS[kind])
        assert isinstance(layer, nn.Linear)
        width = layer.out_features  # that of the stream
        replace_module(model, f"{name}.{OUTPUTS[kind]}", Beside(module, layer, width))
        added += width * layer.out_features
    return added


def measure(model: nn.Module, data: ImageData, job: Job, ledger: Ledger, *, kind: type[nn.Module]) -> dict[str, Any]:
    """Measure "kl", the mean ``KL(dense || compressed)`` in nats, and "agreement"; "added": the weights not counted."""
    recipe = job.recipe_used()
    ledger.tell(f"compress by {recipe.name}")
    images = Images(data.calibration_dataloader(), data.calibration_fingerprint)
    device = str(next(model.parameters()).device)
    analysis = analyse(model, images, recipe.but(refit=False), seed=job.seed, device=device)
    small, _ = analysis.compress(job.reduction)
    added = widen(small, kind)
    sums = {name: moments.sums for name, moments in analysis.moments.items()}
    sensitivities = {name: own["sensitive_tokens"] for name, own in sums.items() if "sensitive_tokens" in own}
    ledger.tell("refit")
    (recipe.refit or OutputRefit())(analysis.model, small, sensitivities, images.each())
    ledger.tell("compare on held-out images")
    found = compare(model, small, data.held_out_dataloader())
    kl, agreement = round(found["kl"], DIGITS), round(found["agreement"], DIGITS)
    return {"images": found["n"], "kl": kl, "agreement": agreement, "added": added}


MEASURES.register("own_inputs_of_attention")(Measure(partial(measure, kind=LowRankAttention), forward_passes))
MEASURES.register("own_inputs_of_mlps")(Measure(partial(measure, kind=SmallMlp), forward_passes))
