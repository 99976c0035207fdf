"""Files of ``torch.export``, which keep the packed codes of a quantised model as they are."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lowrank_vit.stages.export.formats import EXPORTERS, METADATA, Run

if TYPE_CHECKING:
    from torch import Tensor, nn


@EXPORTERS.register("torch-export")
class TorchExport:
    """Write a file for ``torch.export.load``, and for ``AOTInductor``."""

    suffix: ClassVar[str] = ".pt2"
    reader: ClassVar[str] = "torch.export"
    packages: ClassVar[tuple[str, ...]] = ()
    tolerance: ClassVar[float] = 1e-4

    def write(self, model: "nn.Module", example: "Tensor", path: Path, metadata: str) -> None:
        import torch

        program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # with this machine's folders
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={METADATA: metadata})

    def run(self, path: Path) -> Run:
        import torch

        with path.open("rb") as file:
            return torch.export.load(file).module()
