"""Any other timm model: the MLPs and attention of usual kinds in its blocks, though the path through them is unknown."""

from torch import nn

from lowrank_vit.architectures.base import FAMILIES, Branch, block_modules, unwalked
from lowrank_vit.architectures.parts import mlp_inputs
from lowrank_vit.architectures.vit import ViT


@FAMILIES.register("other")
class Other(ViT):
    """Describe MLPs, and attention as ViT has it, wherever they stand; losses are predicted and outputs not refitted."""

    about = "the usual MLPs of any other model"
    general = True

    def takes(self, model: nn.Module) -> bool:
        """Tell whether an MLP of a usual kind stands in one of the blocks."""
        return any(mlp_inputs(module) for _, module in block_modules(model))

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        """Raise ``InputError``: the path from block to block is not known."""
        owners = (name.rpartition(".")[0] for name, module in block_modules(model) if mlp_inputs(module))
        raise unwalked(model, type(model.get_submodule(next(owners))).__name__)

    def positions(self, model: nn.Module) -> None:
        """Return nothing: where it is added is not known."""

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        """Return nothing: no step is known."""
        return ()
