"""The module that replaces a removed block: it returns the stream as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lowrank_vit.modules import REPLACEMENTS


@REPLACEMENTS.register("skipped")
class Skipped(nn.Module):
    """Return the stream as it is, whatever else the block was given."""

    def forward(self, x: Tensor, *others: Any, **more: Any) -> Tensor:
        """Return x, (B, ..., n)."""
        return x

    @property
    def config(self) -> dict[str, Any]:
        """Return nothing: there is no shape."""
        return {}

    @classmethod
    def empty(cls, config: Mapping[str, Any], dense: nn.Module) -> Skipped:
        """Make the module. Raises ``ValueError`` for a configuration, which it does not have."""
        if config:
            raise ValueError(f"a skipped block has no {sorted(config)}")
        return cls()
