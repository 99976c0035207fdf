"""Give random inputs to all verbs, SPECs, budgets, folders and jobs: ``python -m tests.fuzz --count 2000 --seed 0``.

Of every input: ``accepted``, where it works; ``refused``, in one line; ``fault``, for anything else, which is printed. The
command ends with exit code 1 where there is any. The same seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import timm
import torch
from safetensors.torch import save_file

from lowrank_vit import Recipe, compress, get_recipe, quantize, save
from lowrank_vit.runtime.progress import track
from tests.fuzz.kinds import KINDS, MODEL, Field
from tests.support.models import ARGUMENTS, images, tiny

LIMIT = 120  # seconds for one input


def prepared(work: Path) -> Field:
    """Make folders of several kinds of models, and a file of weights, all untrained."""
    torch.manual_seed(0)
    weights = work / "weights.safetensors"
    save_file(timm.create_model(MODEL).state_dict(), weights)
    folders, data = {}, images(8)
    recipes: dict[str, str | Recipe] = {"factors": "svd", "heads": get_recipe("best").but(measured=0, refit=False)}
    recipes["Z"] = get_recipe("paper").but(solver="closed_form")
    for name, recipe in recipes.items():
        small, report = compress(tiny("vit"), data.split(4), recipe, 0.3, seed=0)
        folders[name] = work / name
        save(small, folders[name], report, model_args=ARGUMENTS["vit"])
        if name == "factors":
            eight, addition = quantize(small, 8)
            folders["codes"] = work / "codes"
            save(eight, folders["codes"], {**report, **addition}, model_args=ARGUMENTS["vit"])
    return Field(folders, weights, work, data)


def tried(field: Field, kind: str, seed: int) -> tuple[str, str]:
    """Give one input; returns what became of it, and what it was, or the traceback of a fault."""
    signal.alarm(LIMIT)
    try:
        given, fine = KINDS[kind][1](field, Random(seed))
        return ("accepted" if fine else "refused"), given
    except Exception:
        return "fault", traceback.format_exc()
    finally:
        signal.alarm(0)


def too_long(*given: Any) -> NoReturn:
    """Stop an input that does not end."""
    raise TimeoutError(f"no answer within {LIMIT} s")


def main() -> int:
    """Give the inputs, kind by kind, and count what becomes of them."""
    parser = argparse.ArgumentParser(description="Random inputs to everything that reads any.")
    parser.add_argument("--count", type=int, default=2000, help="inputs of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, help="one kind alone")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, too_long)
    kinds = [args.only] if args.only else list(KINDS)
    plan = [
        (kind, number) for kind in kinds for number in range(round(args.count * (1 if args.only else KINDS[kind][0])))
    ]
    found: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        field = prepared(Path(folder))
        for kind, number in track(plan, "inputs", shown=True):
            became, what = tried(field, kind, hash((args.seed, list(KINDS).index(kind), number)))
            found[kind][became] += 1
            if became == "fault":
                print(f"{kind} {number}: {what}", file=sys.stderr)
    for kind, counts in found.items():
        print(f"{kind:24} {', '.join(f'{counts[name]} {name}' for name in ('accepted', 'refused', 'fault'))}")
    if args.json:
        args.json.write_text(json.dumps({"seed": args.seed, **found}, indent=2) + "\n")
    return int(any(counts["fault"] for counts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
