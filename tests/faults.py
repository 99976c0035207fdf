"""Plant a mistake of mathematics in a copy of the checkout, one at a time: ``python -m tests.faults``.

Of every fault, the test that should notice it runs; the command names those that no test notices, and ends with exit code
1 where there is any. ``make mutants`` changes operators and numbers everywhere in ``linalg``, ``units`` and ``methods``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.sources import ROOT

Faults = dict[str, tuple[tuple[str, str, str], ...]]
FAULTS: Faults = {  # by the test below tests/: file below lowrank_vit/, text, mistake
    "compression/test_api.py": (("units/linear.py", "shift - mean @ z.dense().to(u)", "shift"),),
    "compression/test_columns.py": (
        ("units/parts.py", "dense.bias + (mean @ weight", "dense.bias + 0 * (mean @ weight"),
    ),
    "contracts/test_allocators.py": (
        ("stages/allocate/knapsack.py", "slack = upper - lower + 1e-9 * abs(upper)", "slack = 0.5 * (upper - lower)"),
        ("stages/allocate/knapsack.py", "return ranks[::-1]", "return ranks"),
    ),
    "contracts/test_decompositions.py": (
        ("records/moments.py", 'or "gradient" in name', ""),
        ("stages/decompose/__init__.py", "squares = singular_values.square()", "squares = singular_values"),
        ("methods/aafm.py", "argsort(descending=True)", "argsort()"),
        ("methods/aafm.py", "eigh(second - torch.outer(shift, shift))", "eigh(second)"),
        ("methods/asvd.py", "alpha: float = 0.5", "alpha: float = 1.0"),
        ("methods/loss_aware.py", "0.5 * tail_energy(singular_values)", "tail_energy(singular_values)"),
        ("methods/svd_llm.py", "loss=factors.loss * fraction", "loss=factors.loss"),
        ("methods/azizi.py", "x.unflatten(0, (windows, -1)).mean(0)", "x.unflatten(0, (windows, -1))[0]"),
        ("linalg/metric.py", "total - 2 * cross + gram", "total - cross + gram"),
        ("linalg/metric.py", "squared - 2 * shift @ (self.mean @ error)", "squared + 2 * shift @ (self.mean @ error)"),
        ("methods/fwsvd.py", "fisher.max()).sqrt()", "fisher.max())"),
        ("methods/loss_aware.py", "gradient_root.T, q, upper=True", "gradient_root, q, upper=False"),
    ),
    "contracts/test_mixtures.py": (("units/mixtures.py", "whole - subset.mean @ each for", "bias for"),),
    "methods/test_best.py": (("methods/best.py", "/ (2 * energy)", "/ 2"),),
    "methods/test_head_rivals.py": (("methods/s2vite.py", "fisher.sum((1, 3))", "fisher.amax((1, 3))"),),
    "methods/test_losparse.py": (
        ("methods/losparse.py", "((weight - self.start) * slope)", "(weight * slope)"),
        ("methods/losparse.py", "entries.to(order.device)[order]", "torch.ones_like(entries)[order]"),
    ),
    "methods/test_spvit_he.py": (("stages/gates/mixing.py", "super().open().cumprod(0).bool()", "super().open()"),),
    "methods/test_wdpruning.py": (("methods/wdpruning.py", "(slopes[0] * mask).sum()", "slopes[0].sum()"),),
    "modules/test_token_selector.py": (
        (
            "modules/token_selector.py",
            "ones_like(scores).scatter(1, best, 0.0)",
            "zeros_like(scores).scatter(1, best, 1.0)",
        ),
    ),
    "stages/calibrate/test_stream.py": (
        ("stages/calibrate/statistics/head_fisher.py", "(slope.mT @ slope).sum(0)", "(slope @ slope.mT).sum(0)"),
        ("stages/calibrate/statistics/gradients.py", "panels(seen.slopes.flatten(0, 1))", "panels(seen.rows)"),
    ),
    "stages/compensate/test_kinds.py": (
        ("stages/compensate/kinds/low_rank.py", "torch.linalg.svd(roots.mT @ residual,", "torch.linalg.svd(residual,"),
    ),
    "stages/compensate/test_solve.py": (("stages/compensate/__init__.py", "- 2 * target)", "- target)"),),
    "stages/compensate/test_support.py": (
        ("stages/compensate/kinds/unstructured.py", ".square() / curvature).flatten()", ".square()).flatten()"),
        ("stages/compensate/kinds/structured.py", ".square().sum(2) / safe", ".square().sum(2)"),
    ),
    "stages/correct/test_measured_losses.py": (
        ("stages/correct/measured_losses.py", "trust: float = 0.5", "trust: float = 1.0"),
        ("stages/correct/measured_losses.py", "errors=errors.flip(0).cummax(0).values.flip(0)", "errors=errors"),
    ),
    "stages/correct/test_output_refit.py": (
        ("stages/correct/output_refit.py", "(scale != 0).to(change)", "1.0"),
        ("stages/correct/regression.py", "return weight, e - h @ weight", "return weight, 0 * e"),
        ("stages/correct/output_refit.py", "weights.to(there) * there,", "weights.to(there) * torch.ones_like(there),"),
        ("stages/correct/regression.py", "whole.plus(fold, -1) for", "whole for"),
        ("stages/correct/output_refit.py", "change / gamma, shift / gamma", "change * gamma, shift * gamma"),
    ),
    "stages/quantize/test_gptq.py": (
        ("stages/quantize/gptq.py", "return codes[:, order.argsort()]", "return codes[:, order]"),
    ),
    "stages/quantize/test_inputs.py": (("stages/quantize/weights.py", "layer.bias += (lost", "layer.bias -= (lost"),),
    "stages/quantize/test_nearest.py": (
        ("stages/quantize/nearest.py", "top, low, high = 2**bits - 1, share", "top, low, high = 2**bits, share"),
    ),
    "stages/search/test_gates.py": (
        ("stages/search/gates.py", "multiplier + self.ascent *", "multiplier - self.ascent *"),
    ),
    "stages/training/test_finetune.py": (
        ("objectives/classification.py", "return temperature**2 * F.kl_div", "return temperature * F.kl_div"),
        ("objectives/classification.py", "F.kl_div(log_student, log_teacher,", "F.kl_div(log_teacher, log_student,"),
    ),
}


def copy_checkout(copy: Path) -> None:
    """Copy the package and its tests."""
    for folder in ("lowrank_vit", "experiments", "tests", "docs"):
        shutil.copytree(
            ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "published", "figures")
        )
    shutil.copy(ROOT / "pyproject.toml", copy)


def noticed(copy: Path, test: str, fault: tuple[str, str, str]) -> bool:
    """Plant a fault, run its test in a process of its own, and take the fault out again."""
    name, text, mistake = fault
    path = copy / "lowrank_vit" / name
    sound = path.read_text(encoding="utf-8")
    assert sound.count(text) == 1, f"{name} has {text!r} {sound.count(text)} times"
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
