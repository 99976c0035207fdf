"""Describe one workspace of Weights & Biases that compares the methods: ``python -m experiments workspace``.

Described, not clicked together: whoever has the runs in a project gets the same panels. Publishing it needs an account;
without ``--save`` the description is written as JSON.
"""

import json
import sys
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from experiments.tracking.runs import AXES
from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.extras import require

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

NAME = "Methods compared"
Colours = Mapping[tuple[str, str], str]
GROUPS = ("table", "method")  # keys of a run's config
SCATTERS = (  # title, x, y, of a run's summary
    ("Points lost against the share of parameters removed", "params/reduction", "top1/drop"),
    ("Top-1 after fine-tuning (%) against parameters", "params/compressed", "top1/after"),
    ("Top-1 before fine-tuning (%) against parameters", "params/compressed", "top1/before"),
    ("Top-1 (%) against error on unseen images", "relative_error_held_out", "top1/after"),
)
BARS = (  # title, metric of a run's summary; the mean over the runs of a method
    ("Top-1 after fine-tuning (%)", "top1/after"),
    ("Top-1 before fine-tuning (%)", "top1/before"),
    ("Points lost after fine-tuning", "top1/drop"),
    ("Relative error on unseen images", "relative_error_held_out"),
    ("Loss of Z above the closed form's", "z/gap"),
    ("Seconds of a job", "seconds/total"),
)
OVER_LAYERS = (  # title, metric of a run's history over layers/index
    ("Rank as a share of the full rank", "layers/rank_share"),
    ("Relative error, calibration images", "layers/error"),
    ("Relative error, unseen images", "layers/error_unseen"),
    ("Equation (10) without Z", "layers/z_loss_before"),
    ("Equation (10) with Z", "layers/z_loss"),
)
OVER_STEPS = (  # section, and its panels: title, metric of a run's history
    ("Allocation", (("Parameters", "allocation/parameters"), ("Loss of the last choice", "allocation/loss"))),
    ("Fine-tuning", (("Top-1 (%)", "val_top1"), ("Training loss", "train_loss"), ("Learning rate", "lr"))),
)


def build(entity: str, project: str, colours: Colours) -> "Workspace":
    """Build the workspace. ``colours``: of the groups of runs, by ``GROUPS``.

    Raises ``InputError`` where ``wandb-workspaces`` is not installed.
    """
    require("the workspace", "wandb_workspaces")
    import wandb_workspaces.expr as expr
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=_sections(),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Config(key) for key in GROUPS],
            filters=[expr.Summary("status") == "done"],
            group_colors={ws.GroupPath(*path): colour for path, colour in colours.items()},
            pinned_columns=["summary:top1/after", "summary:top1/drop", "summary:params/reduction", "config:seed"],
        ),
    )


def _sections() -> "list[Section]":
    """Show the methods beside each other, and all that has an axis: layers, Z's steps, the allocator's, the fine-tuning's."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def lines(metrics: Collection[tuple[str, str]]) -> list[Any]:
        axes = [AXES.get(metric) or AXES[f"{metric.partition('/')[0]}/*"] for _, metric in metrics]
        return [wr.LinePlot(title=title, x=x, y=[y]) for (title, y), x in zip(metrics, axes, strict=True)]

    bars: dict[str, Any] = {"groupby": wr.Config("method"), "groupby_aggfunc": "mean", "orientation": "h"}
    methods: list[Any] = [
        *(wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y)) for title, x, y in SCATTERS),
        *(wr.BarPlot(title=title, metrics=[metric], **bars) for title, metric in BARS),
    ]
    z: dict[str, Any] = {"x": AXES["compensation/*"], "metric_regex": "^compensation/(?!step$)", "log_y": True}
    layers = [*lines(OVER_LAYERS), wr.WeavePanelSummaryTable(table_name="layers")]
    return [
        ws.Section("Methods", panels=methods, is_open=True),
        ws.Section("Layers", panels=layers, is_open=True),
        ws.Section("Compensation", panels=[wr.LinePlot(title="Equation (10), each layer", **z)]),
        *(ws.Section(name, panels=lines(metrics)) for name, metrics in OVER_STEPS),
    ]


def run(entity: str | None, project: str, save: bool, colours: Colours) -> int:
    """Run ``python -m experiments workspace``."""
    if save and entity is None:
        raise InputError("--save needs --entity: the user or team on wandb.ai that has the project")
    workspace = build(entity or "", project, colours)
    if not save:  # plain values, as W&B stores it
        print(json.dumps(workspace._model.model_dump(mode="json", by_alias=True, exclude_none=True), indent=2))
        print("not published: --save --entity NAME does (after wandb login and wandb sync)", file=sys.stderr)
        return 0
    try:
        workspace.save()
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"W&B refuses the workspace ({reason}): wandb login first, and check --entity") from None
    print(workspace.url)
    return 0
