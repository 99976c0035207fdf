"""The module that replaces a dense attention: smaller projections, queries and values of unequal widths."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS, Replacement
from lowrank_vit.modules.pivoted_linear import PivotedLinear, as_pivoted
from lowrank_vit.records.moments import as_float64


class Heads:
    """Split channels into heads of given widths, (B, T, sum of widths) to (B, live, T, widest), padded with zeros.

    ``live``: the heads that have a place there, by default all; the others must have no channels. It slices: a gather by
    index, and the scatter of its gradient, cost three times as much. Torch's fused attention takes queries, keys and
    values of one width only: with the zeros it needs a third of the time of the unfused one (DeiT-Tiny's widths, a CPU).
    """

    def __init__(self, widths: Sequence[int], widest: int | None = None, live: Sequence[int] | None = None) -> None:
        self.widths, self.widest = list(widths), max(widths) if widest is None else widest
        self.places = self.widths if live is None else [self.widths[head] for head in live]

    def split(self, x: Tensor) -> Tensor:
        """Split x: (B, T, sum of widths) into heads, (B, live, T, widest)."""
        if set(self.places) == {self.widest}:
            # torch's float32 kernels on a GPU read 16 bytes at once, and fail on a slice that begins elsewhere
            x = x.contiguous() if x.is_cuda else x
            return x.unflatten(-1, (len(self.places), self.widest)).transpose(1, 2)
        parts = zip(x.split(self.places, -1), self.places, strict=True)
        return torch.stack([F.pad(part, (0, self.widest - width)) for part, width in parts], 1)

    def join(self, x: Tensor) -> Tensor:
        """Join the channels again, (B, live, T, widest) to (B, T, sum of widths)."""
        if set(self.places) == {self.widest}:
            return x.transpose(1, 2).flatten(2)
        return torch.cat([x[:, place, :, :width] for place, width in enumerate(self.places)], -1)

    def fill(self, x: Tensor) -> Tensor:
        """Pad every head with zeros to the widest, (..., sum of widths) to (..., heads * widest)."""
        parts = zip(x.split(self.widths, -1), self.widths, strict=True)
        return torch.cat([F.pad(part, (0, self.widest - width)) for part, width in parts], -1)

    def pick(self, x: Tensor) -> Tensor:
        """Pick every head's own channels again, (..., heads * widest) to (..., sum of widths)."""
        parts = zip(x.split(self.widest, -1), self.widths, strict=True)
        return torch.cat([part[..., :width] for part, width in parts], -1)


def relative_positions(height: int, width: int, class_token: bool = False) -> Tensor:
    """Index the relative positions of all pairs of tokens in a window, row by row, (height width, height width).

    A class token comes first: three more numbers stand for its queries, its keys, and both.
    """
    tokens = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    down, right = (tokens[:, None] - tokens[None] + torch.tensor([height - 1, width - 1])).unbind(-1)
    index, count = down * (2 * width - 1) + right, (2 * height - 1) * (2 * width - 1)
    if not class_token:
        return index
    index = torch.cat([torch.full((1, height * width), count), index])
    index = torch.cat([torch.full((len(index), 1), count + 1), index], 1)
    index[0, 0] = count + 2
    return index


def balance_rows(before: Tensor, after: Tensor) -> Tensor:
    """Scale the rows of both, (r, n) and (r, d), in place, so that those of a direction have equal root mean squares.

    Their product stays as it was. Returns the factors of the first, (r, 1).
    """
    sizes = [rows.double().square().mean(1).sqrt() for rows in (before, after)]
    factor = (sizes[1] / sizes[0]).sqrt()
    factor = torch.where(factor.isfinite() & (factor > 0), factor, 1.0).to(before.dtype)[:, None]
    before.mul_(factor)
    after.div_(factor)
    return factor


@REPLACEMENTS.register("attention")
class LowRankAttention(Replacement):
    """Compute attention whose heads compare ``query_key`` directions and pass on ``value`` directions, given per head.

    Keys and values have no bias: the softmax ignores that of the keys, the output's bias holds that of the values.
    ``scale`` is that of the dense head. Both are padded with zeros to one width, as torch's fused kernels, which are twice
    as fast, require. A head of no directions is left out: it costs neither a padded place nor a multiply-accumulate, nor
    a column of position biases. With a ``window_size``, (height, width), a bias for each relative position is added, as in
    Swin, and in BEiT, whose window has a ``class_token`` before it.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        width: int,
        query_key: Sequence[int],
        value: Sequence[int],
        scale: float,
        window_size: Sequence[int] | None = None,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.scale = width, scale
        widest = max(*query_key, *value)
        self.live = [head for head, widths in enumerate(zip(query_key, value, strict=True)) if any(widths)]
        self.query_key, self.value = Heads(query_key, widest, self.live), Heads(value, widest, self.live)
        self.query = nn.Linear(width, sum(query_key))
        self.key_value: nn.Linear | PivotedLinear = nn.Linear(width, sum(query_key) + sum(value), bias=False)
        self.proj = nn.Linear(sum(value), width)
        self.window_size, self.class_token = None if window_size is None else list(window_size), class_token
        self.config = {"width": width, "query_key": self.query_key.widths, "value": self.value.widths, "scale": scale}
        self.config |= {"window_size": self.window_size, **({"class_token": True} if class_token else {})}
        if self.window_size is not None:
            height, breadth = self.window_size
            table = torch.zeros((2 * height - 1) * (2 * breadth - 1) + 3 * class_token, len(self.live))
            self.relative_position_bias_table = nn.Parameter(table)
            self._index_positions()

    def _index_positions(self) -> None:
        assert self.window_size is not None
        height, width = self.window_size
        index = relative_positions(height, width, self.class_token).flatten()
        index = index.to(self.relative_position_bias_table.device)
        self.register_buffer("relative_position_index", index, persistent=False)

    @torch.no_grad()
    def set_window_size(self, window_size: Sequence[int]) -> None:
        """Interpolate the position biases for another window, (height, width), as timm's attention does on request."""
        from timm.layers import resize_rel_pos_bias_table

        before, table = self.window_size, getattr(self, "relative_position_bias_table", None)
        if before is None or table is None or list(window_size) == before:
            return
        height, width = self.window_size = self.config["window_size"] = list(window_size)
        shape = (2 * height - 1) * (2 * width - 1) + 3 * self.class_token, len(self.live)
        sizes = {"new_window_size": (height, width), "old_window_size": tuple(before)}
        resized = resize_rel_pos_bias_table(table, new_bias_shape=shape, **sizes)
        self.relative_position_bias_table = nn.Parameter(resized, table.requires_grad)
        self._index_positions()

    @torch.no_grad()
    def balance(self) -> None:
        """Scale every direction so that its two weight vectors have equal root mean squares; the output is unchanged.

        An optimiser with steps of one size, such as Adam, destroys the smaller of two unbalanced factors first.
        """
        keys, values = self.key_value.weight.split([self.query.out_features, self.proj.in_features])
        self.query.bias.mul_(balance_rows(self.query.weight, keys)[:, 0])
        balance_rows(values, self.proj.weight.T)

    @torch.no_grad()
    def pivot(self) -> None:
        """Stop storing an identity in each head's keys and values; queries and the output take up the change.

        Raises ``TypeError`` where the factors are pivoted already.
        """
        if not isinstance(self.key_value, nn.Linear):
            raise TypeError("the keys and values are pivoted already")
        self.key_value, squares = as_pivoted(self.key_value, [*self.query_key.widths, *self.value.widths])
        keys, values = (
            torch.block_diag(*part) for part in (squares[: len(squares) // 2], squares[len(squares) // 2 :])
        )
        query, proj = self.query, self.proj
        query.weight.data = (keys @ as_float64(query.weight)).to(query.weight)
        query.bias.data = (keys @ as_float64(query.bias)).to(query.bias)
        proj.weight.data = (as_float64(proj.weight) @ values.T).to(proj.weight)

    def _bias(self, mask: Tensor | None, windows: int) -> Tensor | None:
        """Return the bias of the logits, broadcast to (windows, heads, T, T); ``mask`` (masks, T, T) repeats by image."""
        if self.window_size is None:
            return mask
        area = self.window_size[0] * self.window_size[1] + self.class_token
        bias = self.relative_position_bias_table[self.relative_position_index]
        bias = bias.view(area, area, -1).permute(2, 0, 1).unsqueeze(0)
        if mask is None:
            return bias
        return (bias + mask.unsqueeze(1)).repeat(windows // mask.shape[0], 1, 1, 1)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        mask: Tensor | None = None,
        rope: None = None,
        shared_rel_pos_bias: Tensor | None = None,
    ) -> Tensor:
        """Map x: (B, T, n) to (B, T, n); ``mask`` is what Swin calls ``attn_mask``, ``rope`` is always None.

        ``shared_rel_pos_bias``, (heads, T, T), is added to the logits, too, as in BEiT.
        """
        bias = self._bias(attn_mask if mask is None else mask, x.shape[0])
        if shared_rel_pos_bias is not None:
            shared_rel_pos_bias = shared_rel_pos_bias[self.live]
            bias = shared_rel_pos_bias if bias is None else bias + shared_rel_pos_bias
        return self.mixed(*self.projected(x), bias, is_causal)

    def projected(self, x: Tensor, count: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the heads' queries, of the first ``count`` tokens or of all, keys and values, (B, live, T, widest)."""
        keys, values = self.key_value(x).split([self.query.out_features, self.proj.in_features], -1)
        return self.query_key.split(self.query(x[:, :count])), self.query_key.split(keys), self.value.split(values)

    def mixed(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Return the output of the heads' queries, keys and values; ``bias`` is added to the logits."""
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, is_causal=is_causal, scale=self.scale)
        return self.proj(self.value.join(mixed))
