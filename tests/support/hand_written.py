"""Small vision transformers as people write them: blocks and branches of classes that nobody knows."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Together(nn.Module):
    """Attention with one layer for queries, keys and values, a norm in front: the commonest form of all."""

    def __init__(self, dim: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.scale, self.norm = heads, head_width**-0.5, nn.LayerNorm(dim)
        self.attend, self.dropout = nn.Softmax(-1), nn.Dropout(0.1)
        self.to_qkv = nn.Linear(dim, 3 * heads * head_width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * head_width, dim), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        )
        weights = self.dropout(self.attend(q @ k.mT * self.scale))
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """A norm and an MLP in one sequence."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        layers = (nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * dim, dim))
        self.net = nn.Sequential(*layers, nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Transformer(nn.Module):
    """Pairs of branches, which the loop adds to the stream."""

    def __init__(self, dim: int, heads: int, head_width: int) -> None:
        super().__init__()
        pairs = ([Together(dim, heads, head_width), FeedForward(dim)] for _ in range(2))
        self.layers, self.norm = nn.ModuleList(nn.ModuleList(pair) for pair in pairs), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        for attend, think in self.layers:
            x = attend(x) + x
            x = think(x) + x
        return self.norm(x)


class Apart(nn.Module):
    """Attention with a layer each; ``causal``: no token sees those after it."""

    def __init__(self, dim: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.to_q, self.to_k, self.to_v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v)
        )
        y = nn.functional.scaled_dot_product_attention(*parts, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Interleaved(nn.Module):
    """Attention whose layer makes queries, keys and values head by head, divided by the root of the whole width."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        weights = (q @ k.mT * x.shape[-1] ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2)), weights


class Block(nn.Module):
    """A block around any attention; ``scaled``: with LayerScale's factors as parameters of its own."""

    def __init__(self, attention: nn.Module, dim: int, scaled: bool = False) -> None:
        super().__init__()
        self.norm2, self.norm1, self.attention = nn.LayerNorm(dim), nn.LayerNorm(dim), attention
        self.ff = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * dim, dim))
        self.gamma = nn.ParameterList([torch.ones(dim), torch.ones(dim)]) if scaled else [1.0, 1.0]

    def forward(self, x: Tensor, return_attention: bool = False) -> Tensor:
        y = self.norm1(x)
        many = isinstance(self.attention, nn.MultiheadAttention)
        outputs = self.attention(y, y, y, need_weights=False) if many else self.attention(y)
        y, weights = outputs if isinstance(outputs, tuple) else (outputs, y)
        if return_attention:
            return weights
        x = x + self.gamma[0] * y
        return x + self.gamma[1] * self.ff(self.norm2(x))


class Gated(nn.Module):
    """A block whose attention is multiplied by a gate: of no known kind, but its parts are."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.attention, self.ff = nn.MultiheadAttention(dim, heads, batch_first=True), FeedForward(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.gate(y).sigmoid() * self.attention(y, y, y, need_weights=False)[0]
        return x + self.ff(x)


class Listed(nn.Module):
    """Blocks in a list; ``between`` multiplies the stream after each, which no block knows."""

    def __init__(self, block: Callable[[], nn.Module], between: float = 1.0) -> None:
        super().__init__()
        self.layers, self.between = nn.ModuleList(block() for _ in range(2)), between

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.between * layer(x)
        return x


class HandWritten(nn.Module):
    """A model around a body, which maps tokens (B, T, 32) to tokens."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.stem, self.token = nn.Conv2d(3, 32, 8, 8), nn.Parameter(torch.zeros(1, 1, 32))
        self.body, self.head = body, nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).mT
        x = self.body(torch.cat([self.token.expand(len(x), -1, -1), x], 1))
        logits: Tensor = self.head(x[:, 0])
        return logits


def blocks(attention: Callable[[], nn.Module], *, between: float = 1.0, scaled: bool = False) -> HandWritten:
    """A model of blocks around attention."""
    return HandWritten(Listed(lambda: Block(attention(), 32, scaled), between))


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "branches": lambda: HandWritten(Transformer(32, 4, 8)),
    "wider heads": lambda: HandWritten(Transformer(32, 4, 16)),
    "queries apart": lambda: blocks(lambda: Apart(32, 4)),
    "head by head": lambda: blocks(lambda: Interleaved(32, 4), scaled=True),
    "torch's attention": lambda: blocks(lambda: nn.MultiheadAttention(32, 4, batch_first=True)),
}
PARTLY: dict[str, Callable[[], nn.Module]] = {
    "something between": lambda: blocks(lambda: Apart(32, 4), between=0.5),
    "a gate": lambda: HandWritten(Listed(lambda: Gated(32, 4))),
    "causal": lambda: blocks(lambda: Apart(32, 4, causal=True)),
}
