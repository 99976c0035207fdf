"""torchvision's Swin transformers, V1 and V2: attention within shifted windows of a feature map, patches merged between.

Classes are told by their names, so that nothing here needs the package. A block with hooks or other parts stays as it is.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models.swin_transformer import WindowAttention
from timm.models.swin_transformer_v2 import WindowAttention as CosineAttention
from torch import Tensor, nn

from lowrank_vit.architectures.base import FAMILIES, Branch
from lowrank_vit.architectures.encoder_parts import sequential_mlp
from lowrank_vit.architectures.linears import computes_as_known
from lowrank_vit.architectures.plain import two_branches
from lowrank_vit.architectures.step_inputs import Foreign
from lowrank_vit.architectures.windows import cut_windows, join_windows, padded, window_attention
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.records.sites import AttentionSite

ORIGIN = "torchvision.models.swin_transformer"
BLOCKS = {"SwinTransformerBlock": "ShiftedWindowAttention", "SwinTransformerBlockV2": "ShiftedWindowAttentionV2"}
MERGING = ("PatchMerging", "PatchMergingV2")
HIDDEN = -100.0  # what torchvision adds to the logits of pairs that were no neighbours before the shift
CORE = "core"


def _kind(module: nn.Module) -> str:
    """Return the name of a class of torchvision's Swin; nothing for a class of any other origin."""
    return type(module).__name__ if type(module).__module__ == ORIGIN else ""


class ShiftedWindows(nn.Module):
    """Pass a feature map (B, H, W, n) window by window through timm's attention, or through its smaller form."""

    def __init__(self, core: nn.Module, window: Sequence[int], shift: Sequence[int]) -> None:
        super().__init__()
        self.core, self.window, self.shift = core, tuple(window), tuple(shift)

    def shifts(self, sides: Sequence[int]) -> list[int]:
        """Return by how much a feature map of these sides is shifted: not at all along a side of one window."""
        whole = padded(sides, self.window)
        return [
            0 if side <= window else shift for side, window, shift in zip(whole, self.window, self.shift, strict=True)
        ]

    def mask(self, x: Tensor) -> Tensor | None:
        """Return what is added to the logits within each window, (windows, area, area)."""
        sides, shifts = padded(x.shape[1:3], self.window), self.shifts(x.shape[1:3])
        if not any(shifts):
            return None
        rows, columns = (
            (torch.arange(side) >= side - window).int() + (torch.arange(side) >= side - shift).int()
            for side, window, shift in zip(sides, self.window, shifts, strict=True)
        )
        regions = cut_windows((3 * rows[:, None] + columns)[None, ..., None], self.window, (0, 0))
        regions = regions.view(-1, self.window[0] * self.window[1])
        return torch.where(regions[:, None] == regions[:, :, None], 0.0, HIDDEN).to(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, n) to (B, H, W, n)."""
        sides, area = x.shape[1:3], self.window[0] * self.window[1]
        shifts = self.shifts(sides)
        tokens = cut_windows(x, self.window, shifts)
        tokens = self.core(tokens.reshape(-1, area, tokens.shape[-1]), mask=self.mask(x)).reshape(tokens.shape)
        return join_windows(tokens, self.window, shifts, sides)


def exchange_windows(model: nn.Module) -> nn.Module:
    """Exchange the attention and MLPs of torchvision's Swin blocks, in place, and return the model."""
    for block in [module for module in model.modules() if _kind(module) in BLOCKS]:
        attention: Any = block.get_submodule("attn")
        if _kind(attention) != BLOCKS[_kind(block)]:  # exchanged before, or of another kind
            continue
        mlp = sequential_mlp(block.get_submodule("mlp"))
        if mlp is None or not computes_as_known(block):
            continue
        replace_module(block, "mlp", mlp.train(block.training))
        made = ShiftedWindows(_core(attention), attention.window_size, attention.shift_size)
        replace_module(block, "attn", made.train(block.training))
        block.in_blocks = True  # type: ignore[assignment]  # whatever it is called in its model
    return model


def _core(attention: Any) -> nn.Module:
    """Make timm's attention of torchvision's, with the same weights."""
    n, heads, window = attention.qkv.in_features, attention.num_heads, tuple(attention.window_size)
    area, bias = window[0] * window[1], attention.qkv.bias
    drops = {"attn_drop": attention.attention_dropout, "proj_drop": attention.dropout}
    made: WindowAttention | CosineAttention
    with torch.device("meta"):
        if _kind(attention) == BLOCKS["SwinTransformerBlock"]:
            made = WindowAttention(n, heads, window_size=window, qkv_bias=bias is not None, **drops)
        else:
            made = CosineAttention(n, window, heads, qkv_bias=bias is not None, **drops)
    made.qkv, made.proj = attention.qkv, attention.proj
    index = attention.relative_position_index.view(area, area)
    made.register_buffer("relative_position_index", index, persistent=False)
    if isinstance(made, WindowAttention):
        made.relative_position_bias_table = attention.relative_position_bias_table
        return made
    made.logit_scale, made.cpb_mlp = attention.logit_scale, attention.cpb_mlp
    made.register_buffer("relative_coords_table", attention.relative_coords_table, persistent=False)
    if bias is not None:  # of queries, keys and values, of which the keys' is not used
        queries, _, values = bias.detach().chunk(3)
        made.q_bias, made.v_bias = (nn.Parameter(part.clone(), bias.requires_grad) for part in (queries, values))
        made.register_buffer("k_bias", torch.zeros_like(queries), persistent=False)
        made.qkv.bias = None  # type: ignore[assignment]  # a layer without a bias has None there
        made.qkv_bias_separate = True
    return made


@FAMILIES.register("torchvision_swin")
class TorchvisionSwin(Foreign):
    """Describe stages of blocks over a feature map, with patch merging as steps between them."""

    about = "torchvision's Swin and Swin V2"

    def takes(self, model: nn.Module) -> bool:
        return any(isinstance(module, ShiftedWindows) for module in model.modules())

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        return {name: module for name, module in model.named_modules() if _kind(module) in (*BLOCKS, *MERGING)}

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        block: Any = step
        if _kind(step) in MERGING:
            return ()
        windows = block.attn
        return two_branches(
            block,
            attention=f"attn.{CORE}",
            normed=_kind(step) == "SwinTransformerBlockV2",
            foldable=(False, True),
            tokens=lambda x: cut_windows(x, windows.window, windows.shifts(x.shape[1:3])),
            stream=lambda tokens, shape: join_windows(tokens, windows.window, windows.shifts(shape[1:3]), shape[1:3]),
        )

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        return window_attention(name, module)
