"""Blocks around torch's own attention, exchanged for blocks of timm's parts with the same weights.

Known are ``nn.TransformerEncoderLayer`` and the blocks of torchvision's and open_clip's vision transformers; the latter are
told by their names, so that nothing here needs the packages. A block with further parts stays as it is.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from lowrank_vit.architectures.linears import called, computes_as_known, is_linear
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.runtime.errors import InputError

ACTIVATIONS = {F.relu: nn.ReLU, F.gelu: nn.GELU}
NAMED = {  # origin and class: the names of norms, attention and further layers that must do nothing
    ("torchvision.models.vision_transformer", "EncoderBlock"): ("ln_1", "ln_2", "self_attention"),
    ("open_clip.transformer", "ResidualAttentionBlock"): ("ln_1", "ln_2", "attn"),
    ("clip.model", "ResidualAttentionBlock"): ("ln_1", "ln_2", "attn"),
}
SCALES = ("ls_1", "ls_2", "ln_1_kv")


class EncoderBlock(nn.Module):
    """Add attention and an MLP to a stream of tokens, a norm before each, or (``norm_first`` false) after each sum.

    The parts have the names that timm's block gives them; ``ls1`` and ``ls2`` multiply what attention and MLP add.
    ``batch_first``: the stream is (B, T, n); otherwise (T, B, n).
    """

    in_blocks = True  # whatever the block is called in its model
    walks = True  # whether the stream goes from each of these blocks to the next, and nowhere else
    masked = True  # whether it takes the masks of the block that it was made of

    def __init__(
        self, norms: tuple[nn.Module, nn.Module], attn: nn.Module, mlp: nn.Module, *, norm_first: bool
    ) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = norms[0], attn, nn.Identity()
        self.norm2, self.mlp, self.ls2 = norms[1], mlp, nn.Identity()
        self.norm_first, self.batch_first = norm_first, True

    @property
    def self_attn(self) -> "EncoderBlock":
        """Return what ``nn.TransformerEncoder`` asks whether the batch comes first."""
        return self

    def attend(self, x: Tensor, *masks: Any, **options: Any) -> Tensor:
        """Return the outputs of attention for x: (B, T, n); the arguments are those of the blocks that were exchanged."""
        if not self.masked:
            masks, options = refuse_more(*masks, **options)
        return self.attn(x, attn_mask=_mask(*masks, **options))

    def forward(self, x: Tensor, *masks: Any, **options: Any) -> Tensor:
        """Map the stream to that after the block."""
        if not self.batch_first:
            x = x.transpose(0, 1)
        if self.norm_first:
            x = x + self.ls1(self.attend(self.norm1(x), *masks, **options))
            x = x + self.ls2(self.mlp(self.norm2(x)))
        else:
            x = self.norm1(x + self.ls1(self.attend(x, *masks, **options)))
            x = self.norm2(x + self.ls2(self.mlp(x)))
        return x if self.batch_first else x.transpose(0, 1)


def _mask(
    src_mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
) -> Tensor | None:
    """Return the mask for timm's attention, given the arguments of torch's blocks."""
    mask = src_mask if attn_mask is None else attn_mask
    if src_key_padding_mask is not None:
        raise InputError("images have no padding: call the encoder without src_key_padding_mask")
    if mask is not None and mask.dtype == torch.bool:
        mask = ~mask  # of torch's attention, true is hidden; of its function, seen
    return mask


def refuse_more(*further: Any, **options: Any) -> tuple[tuple[()], dict[str, Any]]:
    """Return no arguments. Raises ``InputError`` where a block is given something beside the stream, or asked for more."""
    asked = [str(option) for option, value in options.items() if value is not None and value is not False]
    if asked or any(value is not None and value is not False for value in further):
        raise InputError(
            f"the model gives its blocks more than the stream ({', '.join(asked) or 'a second argument'}), which what was "
            "found to take their place does not have: call it without, or choose layers by `sites=`"
        )
    return (), {}


def exchange_blocks(model: nn.Module) -> nn.Module:
    """Exchange the blocks around torch's attention, in place, and return the model."""
    for name, module in list(model.named_modules()):
        made = _made(module)
        if made is not None and name and computes_as_known(module):
            replace_module(model, name, made.train(module.training))
    return model


def _made(module: Any) -> EncoderBlock | None:
    """Make our form of a block; None for any other module, and for a block with further parts."""
    kind = type(module)
    if kind is nn.TransformerEncoderLayer:
        drops = [module.dropout, module.dropout2]
        mlp = made_mlp(module.linear1, module.activation, module.linear2, drops)
        norms, attention, first = (module.norm1, module.norm2), module.self_attn, module.norm_first
        proj_drop = module.dropout1
    elif (kind.__module__, kind.__name__) in NAMED:
        one, two, attending = NAMED[kind.__module__, kind.__name__]
        if any(not isinstance(getattr(module, scale, nn.Identity()), nn.Identity) for scale in SCALES):
            return None
        norms, attention, first = (getattr(module, one), getattr(module, two)), getattr(module, attending), True
        mlp = sequential_mlp(module.mlp)
        proj_drop = getattr(module, "dropout", nn.Identity())
    else:
        return None
    attn = torch_attention(attention)
    if attn is None or mlp is None:
        return None
    attn.proj_drop = proj_drop
    made = EncoderBlock(norms, attn, mlp, norm_first=first)
    made.batch_first = attention.batch_first
    return made


def torch_attention(module: nn.MultiheadAttention) -> Attention | None:
    """Make timm's attention of torch's; None for one with further parts, or keys and values of other widths."""
    n, weight, bias = module.embed_dim, module.in_proj_weight, module.in_proj_bias
    further = module.bias_k is not None or module.add_zero_attn
    if type(module) is not nn.MultiheadAttention or weight is None or further:
        return None
    proj = module.out_proj
    with torch.device("meta"):
        made = Attention(
            n, module.num_heads, qkv_bias=bias is not None, proj_bias=proj.bias is not None, attn_drop=module.dropout
        )
    made.qkv.weight, made.qkv.bias = weight, bias
    made.proj = called(proj)
    return made


def made_mlp(fc1: nn.Module, activation: Any, fc2: nn.Module, drops: Sequence[nn.Module]) -> Mlp | None:
    """Make timm's MLP; None where the layers are no plain ones, or the activation is an unknown function."""
    act = ACTIVATIONS[activation]() if activation in ACTIVATIONS else activation
    if not isinstance(act, nn.Module) or not is_linear(fc1) or not is_linear(fc2):
        return None
    with torch.device("meta"):
        made = Mlp(fc1.in_features, fc1.out_features, fc2.out_features)
    made.fc1, made.act, made.fc2 = fc1, act, fc2
    for name, drop in zip(("drop1", "drop2"), drops, strict=False):
        replace_module(made, name, drop)
    return made


def sequential_mlp(module: nn.Module) -> Mlp | None:
    """Make timm's MLP of a sequence: a linear layer, an activation, another linear layer, and dropout after each."""
    parts = [part for part in module.children() if not isinstance(part, nn.Dropout | nn.Identity)]
    if type(module).forward is not nn.Sequential.forward or len(parts) != 3:
        return None
    drops = [part for part in module.children() if isinstance(part, nn.Dropout)]
    first, act, second = parts
    return made_mlp(first, act, second, drops)
