"""VMamba: a scan in four directions in the place of attention, then an MLP, stage by stage over a feature map."""

from typing import Any

from torch import nn

from lowrank_vit.architectures.base import FAMILIES, Branch, Family, Refusals, Sites
from lowrank_vit.modules.scans import SS2D


def mixers(model: nn.Module) -> dict[str, SS2D]:
    """Return the mixers of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SS2D)}


@FAMILIES.register("vmamba")
class VMamba(Family):
    """Describe stages of blocks over a map with channels last, with downsampling as steps between them.

    The projections of a mixer are single layers, and its scan is a unit of its own.
    """

    about = "VMamba, v2 and v0"

    def takes(self, model: nn.Module) -> bool:
        return bool(mixers(model))

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        steps: dict[str, nn.Module] = {}
        for stage, layer in model.get_submodule("layers").named_children():
            for name, block in layer.get_submodule("blocks").named_children():
                steps[f"layers.{stage}.blocks.{name}"] = block
            steps[f"layers.{stage}.downsample"] = layer.get_submodule("downsample")
        return steps

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        """Return the branches of mixer and MLP of a block; the first version has no MLP."""
        if not isinstance(getattr(step, "op", None), SS2D):
            return ()
        block: Any = step
        mixer = Branch(step, "op", "out_proj", lambda x: block.op(block.norm(x)))
        if block.mlp is None:
            return (mixer,)
        return mixer, Branch(step, "mlp", "fc2", lambda x: block.mlp(block.norm2(x)))

    def survey(self, model: nn.Module) -> tuple[Sites, Refusals]:
        """Find the MLPs; that a mixer cannot be taken as a whole is intended, not a refusal."""
        sites, refusals = super().survey(model)
        return sites, {name: error for name, error in refusals.items() if name not in mixers(model)}
