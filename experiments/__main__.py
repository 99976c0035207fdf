"""List the tables, run one, report on it: ``python -m experiments``. Each verb imports what it needs when it runs."""

import argparse
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from experiments.jobs.checkpoints import check_folder
from experiments.tables.catalogue import find, find_all, tables
from experiments.tables.rows import Row
from experiments.tracking.runs import PROJECT
from lowrank_vit.data.kinds import check_spec
from lowrank_vit.runtime.errors import InputError, disk_failed, in_shell
from lowrank_vit.runtime.extras import require

RESULTS = Path("results")
LAUNCHERS = ("local", "slurm")
KEPT = "finished work is kept; run the same command to continue"
LR = """(default: 1e-4, the paper's for a batch that it does not name; it stays as it is, whatever the batch. 64 images on
each of eight devices are a batch of 512: --global-batch 64 keeps the steps of one device; to scale the rate linearly with
the batch instead, give --lr 8e-4)"""


def _whole(least: int) -> Callable[[str], int]:
    """Return what reads a whole number of at least 0 or 1."""

    def read(text: str) -> int:
        if text.isdigit() and int(text) >= least:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number{' above zero' if least else ''}")

    return read


_count, _natural = _whole(1), _whole(0)


def _rate(text: str) -> float:
    with suppress(ValueError):
        if 0 < (rate := float(text)) < math.inf:
            return rate
    raise argparse.ArgumentTypeError(f"{text!r} is not a learning rate such as 1e-4")


def _seeds(text: str) -> tuple[int, ...]:
    if not all(part.strip().isdigit() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seeds such as 0,1,2")
    return tuple(dict.fromkeys(int(part) for part in text.split(",")))


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is no KEY=VALUE such as partition=gpu")
    return name.replace("-", "_"), value


def _add_choices(run: argparse.ArgumentParser) -> None:
    """Add the options that say which rows run, on what, and with which settings."""
    add = run.add_argument
    wanted = "all, a table, a row of it, a group of rows such as table2/deit_b, or a pattern such as 'table2/*/svd-40'"
    add("targets", nargs="+", metavar="TABLE[/ROW]", help=wanted)
    add("--data", default="digits", metavar="SPEC", help="digits (the stand-ins), imagefolder:PATH, parquet:PATH, ...")
    add("--checkpoints", type=Path, metavar="DIR", help="folder of NAME.safetensors (default: timm's hub)")
    add("--seeds", type=_seeds, metavar="0,1,2", help="default: 0,1,2 for the stand-ins, 0 for real models")
    add("--epochs", type=_natural, help="epochs of training; full forms split them (default: 20; 0: none)")
    add("--steps", type=_count, help="steps of Z's gradient solvers (default: the recipe's)")
    add("--solver", choices=("closed_form", "moments", "minibatch"), help="how Z is fitted (default: the recipe's)")
    add("--optimizer", choices=("adam", "sgd"), help="optimiser of Z's gradient solvers (default: the recipe's, adam)")
    add("--limit", type=_count, help="evaluate this many images, drawn by the seed")
    add("--calibration-samples", type=_count, default=1024)
    batch = run.add_mutually_exclusive_group()
    batch.add_argument("--batch-size", type=_count, default=64, help="images of one device (default: 64)")
    batch.add_argument("--global-batch", type=_count, metavar="N", help="images of all devices together, split evenly")
    add("--lr", type=_rate, default=1e-4, help=f"learning rate of fine-tuning {LR}")


def _add_machinery(run: argparse.ArgumentParser) -> None:
    """Add the options that say where and how jobs run."""
    add = run.add_argument
    add("--results", type=Path, default=RESULTS, metavar="DIR")
    add("--workers", type=_count, help="jobs side by side (default: a core each for the stand-ins, else 1)")
    loaders = "processes that read and decode images, for each device (default: a core's each, up to 16)"
    add("--loader-workers", type=_natural, metavar="N", help=loaders)
    add("--devices", type=_count, help="devices of each job (default: as torchrun or srun started, or 1)")
    add("--num-nodes", type=_count, help="machines of each job (likewise)")
    add("--launcher", choices=LAUNCHERS, help="hand each job to submitit: SLURM's queue, or processes of this machine")
    add("--slurm", type=_option, action="append", default=[], metavar="KEY=VALUE", help="such as time=600")
    add("--strategy", default="auto", help="Lightning's")
    add("--precision", help="Lightning's, for fine-tuning (default: bf16-mixed where a GPU has it)")
    add("--accelerator", default="auto", help="Lightning's (default: the CPU for the stand-ins, else auto)")
    add("--dry-run", action="store_true", help="say how long each row would take, and run nothing")
    add("--rerun-stale", action="store_true", help="run again what an older revision made")
    add("--no-wandb", action="store_true", help="keep no Weights & Biases runs (they are offline anyway)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="experiments", description="The paper's tables: list, run, report.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="the tables, or the rows of one")
    listing.add_argument("table", nargs="?", metavar="TABLE")
    listing.set_defaults(run=list_tables)
    run = verbs.add_parser("run", help="run what is not finished yet, then report")
    _add_choices(run)
    _add_machinery(run)
    run.set_defaults(run=run_table)
    report = verbs.add_parser("report", help="render the last run again")
    report.add_argument("tables", nargs="+", metavar="TABLE", help="or all")
    report.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    report.set_defaults(run=report_table)
    publish = verbs.add_parser("publish", help="keep results in the repository, and render them in its pages")
    publish.add_argument("targets", nargs="*", metavar="TABLE[/ROW]", help="or all; none: only render the pages again")
    publish.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    publish.set_defaults(run=publish_tables)
    workspace = verbs.add_parser(
        "workspace", help="describe, or publish, the Weights & Biases workspace of all methods"
    )
    workspace.add_argument("--entity", help="the user or team that has the project (needed by --save)")
    workspace.add_argument("--project", default=PROJECT, help=f"default: {PROJECT}")
    workspace.add_argument("--save", action="store_true", help="publish it (needs an account: wandb login)")
    workspace.set_defaults(run=publish_workspace)
    return parser


def publish_workspace(args: argparse.Namespace) -> int:
    """Run the verb ``workspace``."""
    from experiments.report.styles import group_colours
    from experiments.tracking.workspace import run

    return run(args.entity, args.project, args.save, group_colours())


def list_tables(args: argparse.Namespace) -> int:
    """Run the verb ``list``."""
    if args.table is None:
        for table in tables().values():
            print(f"{table.name}  {table.title}: {len(table.runnable)} rows to run, {len(table.rows)} in all")
        return 0
    table, row = find(args.table)
    print(f"{table.about.strip()}\n")
    chosen = table.rows if row is None else table.select(row)
    width = max(len(item.id) for item in table.rows)
    for item in chosen:
        if isinstance(item, Row):
            top1, about = item.top1_reported, item.model
        else:
            top1, about = item.top1, f"reported ({item.protocol})"
        print(f"{item.id:{width}}  {'' if top1 is None else f'{top1:.2f}':>6}  {about}")
    return 0


def report_table(args: argparse.Namespace) -> int:
    """Run the verb ``report``."""
    chosen = find_all(args.tables, whole=True)
    from experiments.report.terminal import report

    for table, _ in chosen:
        report(args.results, table)
    return 0


def publish_tables(args: argparse.Namespace) -> int:
    """Run the verb ``publish``."""
    chosen = find_all(args.targets)
    from experiments.report.publish import run

    return run(args.results, chosen)


def run_table(args: argparse.Namespace) -> int:
    """Run the verb ``run``; a mistyped name or path is told before PyTorch is imported."""
    find_all(args.targets)
    check_spec(args.data)
    if args.checkpoints is not None and args.data != "digits":
        check_folder(args.checkpoints)
    from experiments.report.terminal import report
    from experiments.runner.campaign import run

    return run(args, report)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb. A user's mistake is one line on the error stream and exit code 2; a failed job is exit code 1."""
    words = sys.argv[1:] if arguments is None else arguments
    args = _parser().parse_args(words)
    args.command = shlex.join(["python", "-m", "experiments", *words])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # without which a verb fails, perhaps after hours of work; W&B is not among them
        require("python -m experiments", "matplotlib", *(["sklearn"] if vars(args).get("data") == "digits" else []))
        sys.exit(args.run(args))
    except InputError as error:
        print(f"error: {in_shell(' '.join(str(error).split()), vars(args))}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if not disk_failed(error):
            raise
        print(f"error: {error}: free some space, then run again; finished work is kept", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        print(f"interrupted: {str(stopped) or KEPT}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
