"""What a command imports before it has listed, shown or refused something: modules are counted, not seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.startup import BESIDE, IMPORT, STARTS, TORCH, Start, small_model
from tests.support.sources import ROOT

pytestmark = pytest.mark.slow
LIBRARIES = {
    "datasets", "diffusers", "huggingface_hub", "lightning", "matplotlib", "numpy", "onnx", "pandas", "safetensors",
    "scipy", "sklearn", "timm", "torch", "torchmetrics", "torchvision", "transformers", "wandb",
}  # fmt: skip
WITH_TORCH = {"torch", "numpy", "safetensors"}
SCRIPT = """
import runpy, sys
flag, name, *sys.argv[1:] = sys.argv[1:]
try:
    exec(name) if flag == "-c" else runpy.run_module(name, run_name="__main__", alter_sys=True)
finally:
    print("\\n" + " ".join(sys.modules))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("startup") / "small")


def libraries(start: Start, folder: Path) -> set[str]:
    """The libraries that a start has imported when it ends, as it should."""
    command = [sys.executable, "-c", SCRIPT, *start.command(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == start.code, done.stderr
    if start.code:
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    modules = done.stdout.split("\n")[-2].split()
    assert "lowrank_vit" in modules or "lowrank_vit" not in start.line
    return LIBRARIES & {module.partition(".")[0] for module in modules}


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start.line)
def test_a_start_imports_no_more_than_it_needs(start: Start, folder: Path) -> None:
    assert libraries(start, folder) <= (WITH_TORCH if start.limit == TORCH else set())


def test_a_list_of_models_imports_timm_and_little_else(folder: Path) -> None:
    listed = Start("lowrank_vit list models", None)
    assert libraries(listed, folder) <= libraries(Start("import timm", None), folder) | {
        "safetensors",
        "huggingface_hub",
    }


def test_the_package_imports_what_its_models_are_made_of_and_little_else(folder: Path) -> None:
    """Timm itself brings along what else is installed, such as wandb."""
    assert libraries(IMPORT, folder) <= libraries(BESIDE, folder)
