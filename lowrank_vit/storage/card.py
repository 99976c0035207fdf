"""The model card of a saved folder: ``README.md`` as the Hugging Face hub reads it, from what config and report hold."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from lowrank_vit.objectives import OBJECTIVES
from lowrank_vit.records.report import LayerEntry, Report

NEEDS = frozenset(
    {"model", "recipe", "recipe_fields", "protocol", "params", "macs", "layers", "provenance"}
)  # of a report
PARTS = {"query_key": "query-key", "value": "value", "hidden": "hidden", "head": "heads", "part": "parts"}  # of modules
PARTS |= {"input": "inputs", "depth": "blocks"}
NESTED = """
The folder is nested: `lowrank_vit.load(DIR, reduction=0.6)` opens it at any other reduction up to {most:g}
(`nested.safetensors`, {size:.1f} MiB, by allocator `{allocator}`).
"""
METADATA = """---
{metadata}
---
"""
TEXT = """
# {model}{smaller}

Made with `lowrank_vit`: {how}.

| | dense | this model |
| :-- | --: | --: |
| parameters | {dense:,} | {compressed:,} ({change:+.2f} %) |
| MACs of one image | {dense_macs} | {macs} |

`model.safetensors`: {size:.2f} MiB.

## Use

```python
import lowrank_vit

model = lowrank_vit.load("DIR"{maker})  # a folder, or "hf_hub:OWNER/NAME"
```

The images' size, mean and standard deviation are in `config.json`, under `pretrained_cfg`
(`timm.data.resolve_model_data_config(model)` reads them).
{nested}
## How it was made

{facts}

## What was measured

{measured}

## Licence

{licence}
"""


def shortened(spec: str) -> str:
    """Shorten a data specification to the last part of its path: ``imagefolder:imagenet``."""
    kind, _, target = spec.partition(":")
    return f"{kind}:{Path(target).name}" if target and kind != "hf" else spec


def model_card(config: Mapping[str, Any], report: Report, size: int) -> str:
    """Return the card's text. ``size``: bytes of ``model.safetensors``. What config and report do not hold is left out."""
    params, macs = report["params"], report["macs"] or {"dense": None, "compressed": None}
    removed = 100 * params["reduction"]
    metadata = METADATA.format(metadata=_metadata(config, report).to_yaml().strip())
    body = TEXT.format(
        model=report["model"],
        smaller=f", {removed:.1f} % smaller" if removed else "",
        how=_how(report),
        dense=params["dense"],
        compressed=params["compressed"],
        change=-removed,
        dense_macs=_count(macs["dense"]),
        macs=_count(macs["compressed"]),
        size=size / 2**20,
        maker=_maker(config),
        nested=_nested(config["lowrank_vit"].get("nested")),
        facts=_bullets(_facts(report)) + _layers(report["layers"]),
        measured=_bullets(_measured(report)),
        licence=_licence(config["pretrained_cfg"].get("license"), report["model"]),
    )
    return metadata + body.replace("<", "&lt;")  # a foreign report's texts are no markup


def _maker(config: Mapping[str, Any]) -> str:
    """Return the further argument of ``load`` that is needed for a model that timm did not make."""
    if "factory" in config:
        return f", allow_factory={json.dumps(config['factory'])}"
    return "" if config["architecture"] else ", model=dense"


def base_model(config: Mapping[str, Any]) -> str | None:
    """Return the hub's name of the dense model; None if timm's configuration has none."""
    name = config["pretrained_cfg"].get("hf_hub_id") or ""
    return name if all(name.partition("/")[::2]) else None


def _metadata(config: Mapping[str, Any], report: Report) -> ModelCardData:
    tags = [
        "image-classification",
        *(["timm"] if config["architecture"] else []),
        "vision-transformer",
        "model-compression",
    ]
    tags += ["low-rank"] if report["recipe"] is not None else []
    tags += ["quantized"] if "quantization" in report else []
    return ModelCardData(
        library_name="lowrank_vit",
        pipeline_tag="image-classification" if config["num_classes"] else "image-feature-extraction",
        license=config["pretrained_cfg"].get("license") or "unknown",
        base_model=base_model(config),
        tags=tags,
    )


def _count(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _how(report: Report) -> str:
    steps = [] if report["recipe"] is None else [f"recipe `{report['recipe']}`, {report['recipe_fields']['about']}"]
    if "quantization" in report:
        bits = report["quantization"]["bits"]
        steps.append("stored in float16" if bits == 16 else f"linear layers in {bits} bits, the rest in float16")
    return "; ".join(steps) or "dense"


def _facts(report: Report) -> list[str]:
    provenance = report["provenance"]
    seen, versions = provenance["calibration"], provenance["versions"]
    lines = [f"Protocol: {report['protocol']}."]
    if report["recipe"] is not None:
        source = (
            f"{seen['samples']:,} images of `{shortened(seen['source'])}`, labels not read (their indices' sha256: "
            f"`{seen['indices_sha256']}`)"
            if seen
            else "images that were handed in without a name"
        )
        lines.append(f"Calibration: {source}.")
    if "learnt" in report:
        labels = "no label was read" if report["learnt"].get("images") else "with the weights, on labelled images"
        lines.append(f"What is kept was learnt by gates ({labels}); the settings are in `report.json`.")
    for entry in ("finetune", "distillation"):
        if entry in report:
            lines.append(f"Trained afterwards ({entry}); its settings are in `report.json`.")
    if _repeatable(report):
        lines.append(
            "`lowrank-vit compress --recipe DIR/report.json --out again` repeats it, where its images and weights are."
        )
    lines.append(f"Seed {provenance['seed']}; " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".")
    return lines


def _repeatable(report: Report) -> bool:
    """Tell whether one command made the model, which the report knows."""
    provenance = report["provenance"]
    words = provenance.get("arguments") or str(provenance.get("command", "")).split()
    later = [name for name in ("finetune", "distillation") if name in report]
    rounded_later = "quantization" in report and "--bits" not in words
    return "compress" in words and not later and not rounded_later


def _layers(layers: Sequence[LayerEntry]) -> str:
    if not layers:
        return ""
    rows = [
        "",
        "",
        "Every layer; the error is that of its output relative to the output's energy, before any training and quantisation:",
        "",
        "| layer | shape | rank or width | Z | parameters | error, calibration % | error, unseen % |",
        "| :-- | --: | :-- | --: | --: | --: | --: |",
    ]
    for layer in layers:
        unseen, z = layer["relative_error_held_out"], layer["z"]
        cells = [
            f"`{layer['name']}`",
            f"{layer['in_features']} x {layer['out_features']}",
            _width(layer),
            "" if z is None else f"{z['kind']}, {z['params']:,}",
            f"{layer['params']:,}",
            f"{100 * layer['relative_error']:.2f}",
            "not measured" if unseen is None else f"{100 * unseen:.2f}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _width(layer: LayerEntry) -> str:
    """Return the rank of a linear layer, or what a whole attention module or MLP keeps of each of its parts."""
    details = layer.get("details", {})
    kept = [
        f"{name} {details[part]} of {details[f'{part}_of']}" for part, name in PARTS.items() if f"{part}_of" in details
    ]
    return ", ".join(kept) or ("dense" if layer["rank"] is None else str(layer["rank"]))


def _measured(report: Report) -> list[str]:
    """Describe what was measured, and say if no accuracy was measured."""
    lines = []
    top1 = report.get("finetune", {}).get("val_top1")
    if top1 is not None:
        lines.append(f"Top-1 after fine-tuning, on the validation split of its data: {top1:.2f} %.")
    for objective in map(OBJECTIVES.get, OBJECTIVES.names()):
        unseen, unit = f"{objective.measures}_held_out", objective.unit
        refitted, distilled = report.get("refit", {}).get(unseen), report.get("distillation", {}).get(unseen)
        if refitted is not None:
            lines.append(f"Divergence from the dense model on unseen images: {refitted:.4f} {unit}.")
        if distilled is not None:
            lines.append(f"Divergence after distillation, on unseen images: {distilled['after']:.4f} {unit}.")
    if "quantization" in report:
        lost = 100 * report["quantization"]["relative_weight_error"]
        lines.append(f"Weights differ by {lost:.2f} % from those before quantisation.")
    if top1 is None:
        lines.append(
            "No accuracy: the report holds none. `python -m lowrank_vit evaluate DIR --data SPEC` measures it."
        )
    return lines


def _licence(licence: str | None, model: str) -> str:
    if licence is None:
        return f"Unknown: timm's configuration of `{model}` names none. Ask whoever trained the weights before sharing."
    return (
        f"{licence}, as timm's configuration of `{model}` has it for its own weights. "
        "Weights from a checkpoint of one's own keep theirs."
    )


def _nested(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    return NESTED.format(
        most=entry["largest_reduction"], size=entry["bytes"] / 2**20, allocator=entry["allocator"]["name"]
    )
