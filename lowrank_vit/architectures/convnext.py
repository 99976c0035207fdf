"""timm's ConvNeXt: an MLP behind a convolution of each channel, stage by stage over a feature map."""

from collections.abc import Sequence

from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor, nn

from lowrank_vit.architectures.base import FAMILIES, Branch, Family, unwalked


def added(block: ConvNeXtBlock, x: Tensor) -> Tensor:
    """Compute what a block adds to a feature map, (B, n, H, W)."""
    y = block.mlp(block.norm(block.conv_dw(x).permute(0, 2, 3, 1)))
    y = y if block.gamma is None else y * block.gamma
    return y.permute(0, 3, 1, 2)


def pixels(x: Tensor) -> Tensor:
    """Flatten a feature map (B, n, H, W) to its pixels as tokens, (B, T, n)."""
    return x.flatten(2).mT


def feature_map(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """Invert ``pixels``: tokens (B, T, n) to a feature map of the shape (B, n, H, W)."""
    return tokens.mT.reshape(shape)


@FAMILIES.register("convnext")
class ConvNeXtFamily(Family):
    """Describe stages of blocks over a feature map, with downsampling as steps between them."""

    about = "timm's ConvNeXt with linear layers"

    def takes(self, model: nn.Module) -> bool:
        return isinstance(model, ConvNeXt)

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        assert isinstance(model, ConvNeXt)
        steps: dict[str, nn.Module] = {}
        for stage, module in model.stages.named_children():
            steps[f"stages.{stage}.downsample"] = module.get_submodule("downsample")
            for name, block in module.get_submodule("blocks").named_children():
                assert isinstance(block, ConvNeXtBlock)
                if block.use_conv_mlp or not isinstance(block.shortcut, nn.Identity):
                    raise unwalked(model, type(block).__name__)
                steps[f"stages.{stage}.blocks.{name}"] = block
        return steps

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        if not isinstance(step, ConvNeXtBlock):
            return ()
        branch = Branch(step, "mlp", "fc2", lambda x: added(step, x), step.gamma, pixels, feature_map, norm="norm")
        return (branch,)

    def head(self, model: nn.Module, x: Tensor) -> Tensor:
        return model.forward_head(model.norm_pre(x))  # type: ignore[operator]
