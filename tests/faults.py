"""Plant a mistake of mathematics in a copy of the checkout, one at a time: ``python -m tests.faults``.

Of every fault, the test that should notice it runs; the command names those that no test notices, and ends with exit code
1 where there is any. ``make mutants`` changes operators and numbers everywhere in ``linalg``, ``units`` and ``methods``.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.sources import ROOT

Faults = dict[str, tuple[tuple[str, str, str], ...]]
FAULTS: Faults = {  # by the test below tests/: file or folder below lowrank_vit/, text that is there once, mistake
    "compression/test_api.py": (("units", "shift - mean @ z.dense().to(u)", "shift"),),
    "compression/test_columns.py": (("units", "dense.bias + (mean @ weight", "dense.bias + 0 * (mean @ weight"),),
    "contracts/test_allocators.py": (
        ("stages/allocate", "slack = max(upper - lower, 0.0)", "slack = 0.5 * (upper - lower)"),
        ("stages/allocate", "return ranks[::-1]", "return ranks"),
    ),
    "contracts/test_decompositions.py": (
        ("records", 'or "gradient" in name', ""),
        ("stages/decompose", "squares = singular_values.square()", "squares = singular_values"),
        ("methods/aafm.py", "argsort(descending=True)", "argsort()"),
        ("methods/aafm.py", "eigh(second - torch.outer(shift, shift))", "eigh(second)"),
        ("methods/asvd.py", "alpha: float = 0.5", "alpha: float = 1.0"),
        ("methods/loss_aware.py", "0.5 * tail_energy(singular_values)", "tail_energy(singular_values)"),
        ("methods/svd_llm.py", "loss=factors.loss * fraction", "loss=factors.loss"),
        ("methods/azizi.py", "x.unflatten(0, (windows, -1)).mean(0)", "x.unflatten(0, (windows, -1))[0]"),
        ("linalg", "total - 2 * cross + gram", "total - cross + gram"),
        ("linalg", "squared - 2 * shift @ (self.mean @ error)", "squared + 2 * shift @ (self.mean @ error)"),
        ("methods/fwsvd.py", "fisher.max()).sqrt()", "fisher.max())"),
        ("methods/loss_aware.py", "gradient_root.T, q, upper=True", "gradient_root, q, upper=False"),
    ),
    "contracts/test_mixtures.py": (("units", "whole - subset.mean @ each for", "bias for"),),
    "methods/test_best.py": (("methods/best.py", "/ (2 * energy)", "/ 2"),),
    "methods/test_head_rivals.py": (("methods/s2vite.py", "fisher.sum((1, 3))", "fisher.amax((1, 3))"),),
    "methods/test_losparse.py": (
        ("methods/losparse.py", "((weight - self.start) * slope)", "(weight * slope)"),
        ("methods/losparse.py", "entries.to(order.device)[order]", "torch.ones_like(entries)[order]"),
    ),
    "methods/test_spvit_he.py": (("stages/gates", "super().open().cumprod(0).bool()", "super().open()"),),
    "methods/test_wdpruning.py": (("methods/wdpruning.py", "(slopes[0] * mask).sum()", "slopes[0].sum()"),),
    "modules/test_token_block.py": (
        ("modules", "ones_like(scores).scatter(1, best, 0.0)", "zeros_like(scores).scatter(1, best, 1.0)"),
    ),
    "stages/calibrate/test_stream.py": (
        ("stages/calibrate", "(slope.mT @ slope).sum(0)", "(slope @ slope.mT).sum(0)"),
        ("stages/calibrate", "panels(seen.slopes.flatten(0, 1))", "panels(seen.rows)"),
    ),
    "stages/compensate/test_kinds.py": (
        ("stages/compensate", "torch.linalg.svd(roots.mT @ residual,", "torch.linalg.svd(residual,"),
        ("stages/compensate", ".square() / curvature).flatten()", ".square()).flatten()"),
        ("stages/compensate", ".square().sum(2) / safe", ".square().sum(2)"),
    ),
    "stages/compensate/test_solve.py": (("stages/compensate", "- 2 * target)", "- target)"),),
    "stages/correct/test_measured_losses.py": (
        ("stages/correct", "trust: float = 0.5", "trust: float = 1.0"),
        ("stages/correct", "errors=errors.flip(0).cummax(0).values.flip(0)", "errors=errors"),
    ),
    "stages/correct/test_output_refit.py": (
        ("stages/correct", "(scale != 0).to(change)", "1.0"),
        ("stages/correct", "return weight, e - h @ weight", "return weight, 0 * e"),
        ("stages/correct", "weights.to(there) * there,", "weights.to(there) * torch.ones_like(there),"),
        ("stages/correct", "whole.plus(fold, -1) for", "whole for"),
        ("stages/correct", "change / gamma, shift / gamma", "change * gamma, shift * gamma"),
    ),
    "stages/quantize/test_gptq.py": (
        ("stages/quantize", "return codes[:, order.argsort()]", "return codes[:, order]"),
        ("stages/quantize", "top, low, high = 2**bits - 1, share", "top, low, high = 2**bits, share"),
    ),
    "stages/quantize/test_inputs.py": (("stages/quantize", "layer.bias += (lost", "layer.bias -= (lost"),),
    "stages/search/test_gates.py": (("stages/search", "multiplier + self.ascent *", "multiplier - self.ascent *"),),
    "stages/training/test_finetune.py": (
        ("objectives", "return temperature**2 * F.kl_div", "return temperature * F.kl_div"),
        ("objectives", "F.kl_div(log_student, log_teacher,", "F.kl_div(log_teacher, log_student,"),
    ),
}


def copy_checkout(copy: Path) -> None:
    """Copy the package and its tests."""
    for folder in ("lowrank_vit", "experiments", "tests", "docs"):
        shutil.copytree(
            ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "published", "figures")
        )
    shutil.copy(ROOT / "pyproject.toml", copy)


def place_of(root: Path, name: str, text: str) -> Path:
    """Find the file with the text, which has to be there once."""
    place = root / "lowrank_vit" / name
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    found = [path for path in files for _ in range(path.read_text(encoding="utf-8").count(text))]
    assert len(found) == 1, f"{name} has {text!r} {len(found)} times"
    return found[0]


def noticed(copy: Path, test: str, fault: tuple[str, str, str]) -> bool:
    """Plant a fault, run its test in a process of its own, and take the fault out again."""
    name, text, mistake = fault
    path = place_of(copy, name, text)
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(text, mistake), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test}"]
    # a fault of the same length, planted within the same second, would be taken for the file that is compiled already
    variables = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=variables, capture_output=True, text=True, check=False)
    finally:
        path.write_text(sound, encoding="utf-8")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.returncode == 1


def main() -> int:
    """Try all faults, or those whose line matches the argument."""
    wanted = re.compile(" ".join(sys.argv[1:]))
    lines = [(test, fault) for test, faults in FAULTS.items() for fault in faults]
    lines = [(test, fault) for test, fault in lines if wanted.search(" ".join((test, *fault)))]
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        copy_checkout(Path(folder))
        for test, fault in lines:
            dead = noticed(Path(folder), test, fault)
            survived += not dead
            print("noticed " if dead else "SURVIVED", test, *fault, flush=True)
    print(f"{len(lines) - survived} of {len(lines)} noticed")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
