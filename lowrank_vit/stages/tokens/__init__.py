"""Fewer tokens, by rules: they save multiply-accumulates, never parameters.

A rule is a frozen dataclass, called with a dense or compressed model; it returns a copy whose blocks hand on fewer tokens.
Some rules learn which: what they return is trained by ``learning``.
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from torch import nn

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.registry import Registry


class TokenRule(Protocol):
    """Define the interface of a rule."""

    def __call__(self, model: nn.Module) -> nn.Module:
        """Return a copy with fewer tokens. Raises ``InputError`` for a model whose tokens must stay."""

    def strengths(self, tokens: int) -> "Sequence[TokenRule]":
        """List the rule at all its strengths for a model of that many patches, the weakest first."""


@runtime_checkable
class LearntRule(TokenRule, Protocol):
    """Define a rule whose blocks have selectors to train: with the weights on ``labelled`` images, or alone on any."""

    labelled: ClassVar[bool]


TOKENS: Registry[type[TokenRule]] = Registry("token rule", "lowrank_vit.methods")


def check_shares(keep: float, at: Sequence[float] = ()) -> None:
    """Raise ``InputError`` unless ``keep`` is a share of tokens, and ``at`` are shares of the depth."""
    if not 0 < keep <= 1 or not all(0 <= share < 1 for share in at):
        raise InputError(f"keep={keep}, at={tuple(at)}: need shares above 0 and up to 1, and from 0 to below 1")
