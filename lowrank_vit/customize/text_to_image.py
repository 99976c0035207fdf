"""A frozen text-to-image model: its U-Net, the schedule of the noise, and the text model, of a table of words or CLIP."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lowrank_vit.modules.counting import model_hash
from lowrank_vit.runtime.errors import InputError

PREDICTIONS = ("epsilon", "v_prediction")


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


@dataclass
class TextToImage:
    """Hold the parts of a model, all frozen. Images are (N, C, H, W) in -1..1.

    ``schedule`` is the configuration of a scheduler of diffusers; ``autoencoder`` None: the U-Net works on pixels.
    Raises ``InputError`` for a U-Net that needs more than a prompt, or whose prediction is of another kind.
    """

    unet: Any
    text: Text
    schedule: Mapping[str, Any]
    autoencoder: Any = None

    def __post_init__(self) -> None:
        config = self.unet.config
        for name in ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim"):
            if config.get(name) is not None:
                raise InputError(f"this U-Net needs more than a prompt ({name}={config[name]!r}): choose one without")
        kind = self.schedule.get("prediction_type", "epsilon")
        if kind not in PREDICTIONS:
            raise InputError(f"the model predicts {kind!r}: only {' and '.join(PREDICTIONS)} are customised")
        for module in self.modules():
            module.requires_grad_(False).eval()

    def modules(self) -> list[nn.Module]:
        return [part for part in (self.unet, self.text.encoder, self.autoencoder) if part is not None]

    def to(self, device: torch.device) -> "TextToImage":
        for module in self.modules():
            module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def channels(self) -> int:
        config = self.unet.config if self.autoencoder is None else self.autoencoder.config
        return int(config["in_channels"])

    @property
    def side(self) -> int:
        sample = self.unet.config["sample_size"]
        if not isinstance(sample, int):
            raise InputError(f"the U-Net's sample_size is {sample!r}: only square images are taken")
        return (
            sample
            if self.autoencoder is None
            else sample * 2 ** (len(self.autoencoder.config["block_out_channels"]) - 1)
        )

    def hash(self) -> str:
        """Hash the weights that a delta is made for: of the U-Net and the text model, wherever they are."""
        return model_hash(nn.ModuleDict({"unet": self.unet, "text": self.text.encoder}))

    def prompt(self, prompts: Sequence[str], new_word: str | None = None) -> Tensor:
        """Return what the U-Net attends to, (N, L, m)."""
        return self.text.encode(self.text.tokens(prompts, new_word))

    @torch.no_grad()
    def to_latents(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return the U-Net's inputs for images: the images, or a scaled draw of the autoencoder's code."""
        if self.autoencoder is None:
            return images
        code = self.autoencoder.encode(images).latent_dist
        noise = torch.randn(code.mean.shape, generator=generator).to(images)
        return (code.mean + code.std * noise) * self.autoencoder.config["scaling_factor"]

    @torch.no_grad()
    def to_images(self, latents: Tensor) -> Tensor:
        """Return the images that the U-Net's inputs stand for."""
        if self.autoencoder is None:
            return latents.clamp(-1, 1)
        return self.autoencoder.decode(latents / self.autoencoder.config["scaling_factor"]).sample.clamp(-1, 1)
