"""Record the SHA-256 of what every recipe makes, so that a change of structure can be shown to change no result.

``python -m benchmarks.fingerprints --out DIR`` compresses a stand-in of each kind by 40 % with every recipe, and with
``--data`` and ``--checkpoint`` also DeiT-Tiny. It keeps the folders, writes ``fingerprints.json`` and, with ``--against``
another such file, prints what differs and by how much.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

from safetensors.torch import load_file

STANDINS = ("digits_deit_base", "digits_vit_base", "digits_swin_base")
REAL = "deit_tiny_patch16_224"
RECIPES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("svd", "fwsvd", "asvd", "svd_llm", "aafm", "exact", "loss_aware", "best")},
    "paper-closed": ("paper", "--solver", "closed_form"),
    "paper-moments": ("paper", "--solver", "moments", "--steps", "20"),
    "paper-minibatch": ("paper", "--solver", "minibatch", "--steps", "20"),
    "best-multiple": ("best", "--rank-multiple", "4"),
}


def compress(arguments: list[str], out: Path) -> str | None:
    """Return the SHA-256 of the weights that one call of the command line makes; None where it refuses."""
    from lowrank_vit.cli import main

    weights = out / "model.safetensors"
    if not weights.exists():
        try:
            main(["compress", *arguments, "--reduction", "0.4", "--device", "cpu", "--out", str(out)])
        except SystemExit as stopped:
            if stopped.code:
                return None
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def largest_difference(one: Path, other: Path) -> float:
    """Return the largest difference of two saved models' values, relative to the largest value of its tensor."""
    left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    if {n: t.shape for n, t in left.items()} != {n: t.shape for n, t in right.items()}:
        return float("inf")
    pairs = [(tensor.double(), right[name].double()) for name, tensor in left.items()]
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)


def record(out: Path, data: str | None, checkpoint: str | None) -> dict[str, str | None]:
    """Return the fingerprints of all recipes on all models; existing folders are not made again."""
    models = {name: ["--model", name, "--data", "digits", "--calibration-samples", "256"] for name in STANDINS}
    if data and checkpoint:
        options = ["--checkpoint", checkpoint, "--data", data, "--calibration-samples", "64"]
        models[REAL] = ["--model", REAL, *options, "--held-out-samples", "16", "--batch-size", "16"]
    fingerprints = {}
    for model, arguments in models.items():
        for name, recipe in RECIPES.items():
            fingerprints[f"{model}/{name}"] = compress([*arguments, "--recipe", *recipe], out / model / name)
    (out / "fingerprints.json").write_text(json.dumps(fingerprints, indent=2) + "\n", encoding="utf-8")
    return fingerprints


def main() -> None:
    """Record and, with ``--against``, compare; exit with 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", metavar="SPEC", help="of real images, for DeiT-Tiny")
    parser.add_argument("--checkpoint", metavar="FILE", help="DeiT-Tiny's weights")
    parser.add_argument("--against", type=Path, metavar="DIR", help="where another version's fingerprints lie")
    args = parser.parse_args()
    fingerprints = record(args.out, args.data, args.checkpoint)
    if args.against is None:
        return
    known = json.loads((args.against / "fingerprints.json").read_text(encoding="utf-8"))
    differing = [name for name in fingerprints if name in known and fingerprints[name] != known[name]]
    for name in differing:
        there = fingerprints[name] is not None and known[name] is not None
        print(name, largest_difference(args.out / name, args.against / name) if there else "refused by one of them")
    print(f"{len(fingerprints) - len(differing)} of {len(fingerprints)} are the same bytes")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
