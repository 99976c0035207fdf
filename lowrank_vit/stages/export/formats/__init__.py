"""Formats that a model is exported to, one file for each; listed without PyTorch, which a format imports where it uses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from lowrank_vit.runtime.extras import require
from lowrank_vit.runtime.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

METADATA = "lowrank_vit"  # under which a file describes the images that the model takes
Run: TypeAlias = "Callable[[Tensor], Tensor]"  # images (B, C, H, W) to logits


class Exporter(Protocol):
    """Define the interface of a format.

    ``suffix``: what its files end in; ``reader``: what runs them; ``packages``: what it needs beside PyTorch;
    ``tolerance``: by how much a file's logits may differ from the model's, as a share of the largest.
    A format of two files also has ``beside``: what the others end in.
    """

    suffix: ClassVar[str]
    reader: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    tolerance: ClassVar[float]

    def write(self, model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
        """Write a file that takes batches of any size, from a batch to trace. Raises ``InputError`` where it cannot."""

    def run(self, path: Path) -> Run:
        """Load a file, as its users would, on the CPU."""


class Narrowed(Exporter, Protocol):
    """Define the interface of a format that is made from a float32 ONNX file, and so also in fewer bits."""

    def write_fixed(self, module: nn.Module, example: Tensor, path: Path) -> None:
        """Write the file of a module that takes inputs of the example's shape only."""

    def convert(self, exact: Path, path: Path) -> None:
        """Write the file from an ONNX file, whose integers stay as they are."""

    def halve(self, exact: Path, path: Path, kept: frozenset[str]) -> None:
        """Write the file in float16 from a float32 ONNX file; ``kept``: names of its nodes that stay in float32."""

    def run_half(self, path: Path) -> Run:
        """Load a file in float16 so that all that its nodes return is rounded to float16, where the processor can."""


EXPORTERS: Registry[type[Exporter]] = Registry("format", __name__)
NARROWED: Registry[type[Narrowed]] = Registry("format of float16 or integers", __name__)


def exporter(name: str) -> Exporter:
    """Return what writes a format. Raises ``InputError`` for an unknown one, and where a package that it needs is missing."""
    found = EXPORTERS.get(name)()
    require(f"the format {name}", *found.packages)
    return found


def narrowed(name: str) -> Narrowed:
    """Return what writes a format in fewer bits. Raises ``InputError`` as ``exporter`` does."""
    exporter(name)
    return NARROWED.get(name)()


def files(found: Exporter, path: Path) -> list[Path]:
    """List all files of a format that are written for one path."""
    return [path, *(path.with_suffix(suffix) for suffix in getattr(found, "beside", ()))]
