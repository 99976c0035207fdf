"""Where a result comes from: versions, commit, device, command."""

import hashlib
import platform
import resource
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "timm", "lightning", "torchmetrics", "numpy")


@cache
def git_state() -> dict[str, Any] | None:
    """Return commit and dirty flag of the checkout that the package runs from; ``None`` outside a checkout."""
    folder = Path(__file__).parents[1]
    try:
        known = ["git", "ls-files", "--error-unmatch", __file__]  # fails where it is installed below another project
        subprocess.run(known, cwd=folder, capture_output=True, check=True)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--", "."], cwd=folder, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}


@cache
def source_hash() -> str:
    """Hash the package's source: a result of other source is stale."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the numbers depend on."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def device_name(device: torch.device) -> str:
    """Return the device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU's allocator, or of the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def record(device: torch.device, seed: int, calibration: dict[str, Any] | None) -> dict[str, Any]:
    """Return the ``provenance`` entry of a report."""
    return {
        "seed": seed,
        "calibration": calibration,
        "git": git_state(),
        "source": source_hash(),
        "versions": versions(),
        "device": device_name(device),
        "arguments": sys.argv[1:],
        "command": " ".join(Path(part).name if index == 0 else part for index, part in enumerate(sys.argv)),
    }
