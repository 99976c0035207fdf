"""From prompts to what a U-Net attends to: a table of words, CLIP, and a new word in either."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lowrank_vit.runtime.errors import InputError


class Text(Protocol):
    """Define the interface of a text model."""

    @property
    def encoder(self) -> nn.Module:
        """Return the module with all weights."""

    def tokens(self, prompts: Sequence[str], new_word: str | None = None) -> Tensor:
        """Return the words' numbers, (N, L); ``new_word`` has the number after the last known one."""

    def encode(self, tokens: Tensor) -> Tensor:
        """Return the vectors that the U-Net attends to, (N, L, m)."""

    @property
    def embedding(self) -> Any:
        """Return the module that looks up the words' vectors."""

    def use(self, embedding: nn.Module) -> None:
        """Put another module in its place."""


class WordTable:
    """Look up the word vectors of a small vocabulary, whose first word is the empty one; prompts are ``length`` words."""

    def __init__(self, vocabulary: Sequence[str], width: int, length: int) -> None:
        self.vocabulary, self.length = list(vocabulary), length
        self.encoder = nn.Sequential(nn.Embedding(len(self.vocabulary), width))

    def tokens(self, prompts: Sequence[str], new_word: str | None = None) -> Tensor:
        """Look every word up. Raises ``InputError`` for an unknown one, and for a prompt that is too long."""
        known = self.vocabulary if new_word is None else [*self.vocabulary, new_word]
        rows = []
        for prompt in prompts:
            words = prompt.split()
            for word in words:
                if word not in known:
                    near = difflib.get_close_matches(word, known[1:], n=1)
                    hint = f"did you mean {near[0]!r}? " if near else ""
                    raise InputError(f"the model does not know {word!r}: {hint}it knows {', '.join(known[1:])}")
            if len(words) > self.length:
                raise InputError(f"the prompt {prompt!r} has {len(words)} words: the model takes {self.length}")
            rows.append([known.index(word) for word in words] + [0] * (self.length - len(words)))
        return torch.tensor(rows, device=next(self.encoder.parameters()).device)

    def encode(self, tokens: Tensor) -> Tensor:
        return self.encoder(tokens)

    @property
    def embedding(self) -> Any:
        return self.encoder[0]

    def use(self, embedding: nn.Module) -> None:
        self.encoder[0] = embedding


class ClipText:
    """Encode prompts with CLIP's tokenizer and text model, as folders of diffusers have them."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizer, self.encoder = tokenizer, encoder

    def tokens(self, prompts: Sequence[str], new_word: str | None = None) -> Tensor:
        """Tokenize, padded or cut to the model's length; the text around the new word is tokenized as usual."""
        tokenizer, length = self.tokenizer, self.tokenizer.model_max_length
        new = self.encoder.config.vocab_size
        rows = []
        for prompt in prompts:
            parts = [prompt] if new_word is None else prompt.split(new_word)
            pieces = [tokenizer(part, add_special_tokens=False).input_ids if part.strip() else [] for part in parts]
            ids = [tokenizer.bos_token_id, *pieces[0]]
            for piece in pieces[1:]:
                ids += [new, *piece]
            ids = [*ids[: length - 1], tokenizer.eos_token_id]
            rows.append(ids + [tokenizer.pad_token_id] * (length - len(ids)))
        return torch.tensor(rows, device=next(self.encoder.parameters()).device)

    def encode(self, tokens: Tensor) -> Tensor:
        return self.encoder(tokens).last_hidden_state

    @property
    def embedding(self) -> Any:
        return self.encoder.get_input_embeddings()

    def use(self, embedding: nn.Module) -> None:
        self.encoder.set_input_embeddings(embedding)


class NewWord(nn.Module):
    """Extend a table by one vector, for the number after its last; it begins at random, as large as the others are."""

    def __init__(self, table: nn.Embedding, generator: torch.Generator) -> None:
        super().__init__()
        self.table = table
        values = torch.randn(table.embedding_dim, generator=generator)
        self.vector = nn.Parameter(values.to(table.weight) * table.weight.std(0), requires_grad=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up (N, L), giving (N, L, m)."""
        new = tokens == self.table.num_embeddings
        return torch.where(new.unsqueeze(-1), self.vector, self.table(tokens.masked_fill(new, 0)))
