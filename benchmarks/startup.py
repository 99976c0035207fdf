"""CPU seconds of a start: until a command has listed, shown or refused something, and until the package is imported.

    python -m benchmarks.startup [--rounds 3] [--json FILE]

User and system time of a fresh process, the least of all rounds. `make setup` leaves bytecode behind: without it, where
PYTHONDONTWRITEBYTECODE is set, each start compiles all that it imports. `tests/contracts/test_startup.py` names what each of
these may import; `list models` is timm's list, and takes its import.
"""

import argparse
import resource
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.output import show, write

PLAIN, TORCH = 1.0, 2.0  # CPU seconds that a start may take, with and without PyTorch
FOLDER = "DIR"  # stands for the folder of a compressed model


@dataclass(frozen=True)
class Start:
    """Describe a start: a module and its arguments, or a statement; the CPU seconds that it may take, and its exit code."""

    line: str
    limit: float | None = PLAIN
    code: int = 0

    def command(self, folder: Path) -> list[str]:
        """Return the arguments of the interpreter."""
        if self.line.startswith("import "):
            return ["-c", self.line]
        return ["-m", *(str(folder) if word == FOLDER else word for word in shlex.split(self.line))]


COMPRESS = "lowrank_vit compress --model digits_deit_small --data digits --reduction 0.5"
STARTS = (
    Start("lowrank_vit --help"),
    Start("lowrank_vit list exporters"),
    Start("lowrank_vit inspect DIR"),
    Start("lowrank_vit inspect nowhere", code=2),
    Start(f"{COMPRESS} --out new --checkpoint nowhere.safetensors", code=2),
    Start(f"{COMPRESS} --out DIR", code=2),
    Start("lowrank_vit evaluate DIR --model digits_deit_small --data digits", code=2),
    Start("lowrank_vit evaluate DIR --data imagefolder:nowhere", code=2),
    Start("lowrank_vit evaluate DIR --data ordered:natural,joined:photos,foo:bar", code=2),
    Start("lowrank_vit quantize DIR --bits 8 --out DIR", code=2),
    Start("experiments --help"),
    Start("experiments list table1"),
    Start("experiments run tabel1", code=2),
    Start("experiments run table1 --data imagefolder:nowhere", code=2),
    Start("experiments run table1 --data imagefolder:. --checkpoints nowhere", code=2),
    Start("lowrank_vit list recipes", TORCH),
    Start("lowrank_vit list methods", TORCH),
    Start("lowrank_vit list quantizers", TORCH),
    Start("experiments list table_rivals", TORCH),
    Start(f"{COMPRESS} --out new --recipe exakt", TORCH, code=2),
    Start(
        "lowrank_vit learn --model digits_deit_small --data digits --reduction 0.5 --out new --method vtq",
        TORCH,
        code=2,
    ),
    Start("lowrank_vit quantize DIR --bits 8 --method gptk --out new", TORCH, code=2),
    Start("import lowrank_vit; lowrank_vit.RECIPES", TORCH),
)
IMPORT, BESIDE = Start("import lowrank_vit; lowrank_vit.compress", None), Start("import torch, timm", None)
MORE = 1.2  # times the CPU seconds of the latter that the former may take


def small_model(folder: Path) -> Path:
    """Save a small compressed model, to inspect it."""
    import timm
    import torch

    from lowrank_vit import compress, save

    arguments: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 2, "num_classes": 10}
    model = timm.create_model("vit_tiny_patch16_224", **arguments)
    small, _ = compress(model, [torch.randn(8, 3, 32, 32)], "svd", 0.4)
    save(small, folder, model_args=arguments)
    return folder


def cpu_seconds(start: Start, folder: Path) -> float:
    """Return the CPU seconds of one start. Raises ``RuntimeError`` where it ends with another exit code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *start.command(folder)], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != start.code:
        raise RuntimeError(f"{start.line} ended with {done.returncode}, not {start.code}: {done.stderr.strip()[-500:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure all starts and print the table."""
    parser = argparse.ArgumentParser(description="CPU seconds of a start.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    starts = (*STARTS, Start("lowrank_vit list models", None), Start("import torch", None), BESIDE, IMPORT)
    with tempfile.TemporaryDirectory() as parent:
        folder = small_model(Path(parent) / "small")
        seconds = {each.line: min(cpu_seconds(each, folder) for _ in range(args.rounds)) for each in starts}
    limits = {each.line: each.limit for each in starts} | {IMPORT.line: MORE * seconds[BESIDE.line]}
    title, header = "CPU seconds of a start", ("command", "seconds", "at most")
    lines = [
        [line, f"{seconds[line]:.2f}", "" if (limit := limits[line]) is None else f"{limit:.2f}"] for line in seconds
    ]
    show(title, header, lines)
    rows = [{"command": line, "seconds": seconds[line], "limit": limits[line]} for line in seconds]
    write(args.json, title, header, lines, {"rows": rows})


if __name__ == "__main__":
    main()
