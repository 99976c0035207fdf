"""The model card of a saved folder: ``README.md`` as the Hugging Face hub reads it, from what config and report hold."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from lowrank_vit.objectives import OBJECTIVES
from lowrank_vit.records.report import LayerEntry, Report
from lowrank_vit.records.sites import WORDS

# of a report
NEEDS = frozenset({"model", "recipe", "recipe_fields", "protocol", "params", "macs", "layers", "provenance"})


def model_card(config: Mapping[str, Any], report: Report, size: int) -> str:
    """Return the card's text. ``size``: bytes of ``model.safetensors``. What config and report do not hold is left out.

    In the template every ``<`` is escaped, since a foreign report's texts are no markup.
    """
    calibration, macs = report["provenance"]["calibration"], dict(report["macs"] or {})
    kind, _, target = calibration["source"].partition(":") if calibration else ("", "", "")
    card = ModelCard.from_template(
        _metadata(config, report),
        str(Path(__file__).with_name("card.md.jinja")),
        report=report,
        steps=_steps(report),
        macs={which: f"{macs[which]:,}" if which in macs else "unknown" for which in ("dense", "compressed")},
        size=size / 2**20,
        maker=_maker(config),
        nested=config["lowrank_vit"].get("nested"),
        calibration=calibration,
        source=f"{kind}:{Path(target).name}" if target and kind != "hf" else f"{kind}:{target}".rstrip(":"),
        repeatable=_repeatable(report),
        width=_width,
        objectives=[OBJECTIVES.get(name) for name in OBJECTIVES.names()],
        licence=config["pretrained_cfg"].get("license"),
    )
    return str(card)


def _maker(config: Mapping[str, Any]) -> str:
    """Return the further argument of ``load`` that is needed for a model that timm did not make."""
    if "factory" in config:
        return f", allow_factory={json.dumps(config['factory'])}"
    return "" if config["architecture"] else ", model=dense"


def _metadata(config: Mapping[str, Any], report: Report) -> ModelCardData:
    base = config["pretrained_cfg"].get("hf_hub_id") or ""  # of the dense model, where timm's configuration has one
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
        base_model=base if all(base.partition("/")[::2]) else None,
        tags=tags,
    )


def _steps(report: Report) -> list[str]:
    steps = []
    if report["recipe"] is not None:
        fields = report["recipe_fields"]
        tokens: Any = report.get("tokens")
        steps = [f"recipe `{report['recipe']}`, {fields['about']}"]
        steps += ["factors pivoted"] if fields.get("pivoted") else []
        steps += ["tokens merged"] if tokens is not None and any(tokens.get("pairs", [True])) else []
    if "quantization" in report:
        bits = report["quantization"]["bits"]
        steps.append("stored in float16" if bits == 16 else f"linear layers in {bits} bits, the rest in float16")
    return steps


def _repeatable(report: Report) -> bool:
    provenance = report["provenance"]
    words = provenance.get("arguments") or str(provenance.get("command", "")).split()
    later = [name for name in ("finetune", "distillation") if name in report]
    rounded_later = "quantization" in report and "--bits" not in words
    return "compress" in words and not later and not rounded_later


def _width(layer: LayerEntry) -> str:
    """Return the rank of a linear layer, or what a whole attention module or MLP keeps of each of its parts."""
    details = layer.get("details", {})
    kept = [
        f"{name} {details[part]} of {details[f'{part}_of']}" for part, name in WORDS.items() if f"{part}_of" in details
    ]
    return ", ".join(kept) or ("dense" if layer["rank"] is None else f"rank {layer['rank']}")
