"""A compressed or quantised model's folder: ``config.json`` (timm-style), ``model.safetensors``, ``report.json``.

What ``quantize`` made is stored with its floating values in float16; everything else in the types it has.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lowrank_vit.attention import LowRankAttention
from lowrank_vit.compensate import empty_module
from lowrank_vit.errors import InputError
from lowrank_vit.files import write_json, write_tensors
from lowrank_vit.layers import LowRankLinear, QuantizedLinear, SmallMlp
from lowrank_vit.sites import call_every_layer, replace_module
from lowrank_vit.trust import check_architecture, check_layer, check_report, check_tensors, parse_json

FORMATS = (1, 2)  # 2: with quantised layers, which readers of 1 do not know
WEIGHTS = "model.safetensors"
FILES = ("config.json", WEIGHTS, "report.json")
PORTABLE = (str, int, float, bool, list, tuple, type(None))


def is_saved_model(folder: Path) -> bool:
    """Whether the folder holds a whole model."""
    return all((folder / name).is_file() for name in FILES)


def file_bytes(folder: str | Path) -> int:
    """The size of a saved model: bytes of its ``model.safetensors`` on disk."""
    return (Path(folder) / WEIGHTS).stat().st_size


def _is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, QuantizedLinear) for module in model.modules())


def _layer_config(module: LowRankLinear | QuantizedLinear | LowRankAttention | SmallMlp) -> dict[str, Any]:
    if isinstance(module, LowRankAttention):
        return {"kind": "attention", **module.config}
    if isinstance(module, SmallMlp):
        return {"kind": "mlp", **module.config}
    shape = {"in_features": module.in_features, "out_features": module.out_features}
    if isinstance(module, QuantizedLinear):
        return {**shape, "bits": module.bits, "bias": module.bias is not None}
    correction = getattr(module.correction, "config", None)
    return {**shape, "rank": module.rank, "bias": module.up.bias is not None, "correction": correction}


def _layer_configs(model: nn.Module) -> dict[str, dict[str, Any]]:
    """An entry for each module that timm does not make; a compressed one comes before the factors inside it."""
    kinds = (LowRankLinear, QuantizedLinear, LowRankAttention, SmallMlp)
    return {name: _layer_config(module) for name, module in model.named_modules() if isinstance(module, kinds)}


def _config(model: nn.Module, report: Mapping[str, Any], model_args: Mapping[str, Any] | None) -> dict[str, Any]:
    pretrained = {k: v for k, v in getattr(model, "pretrained_cfg", {}).items() if isinstance(v, PORTABLE)}
    architecture = pretrained.get("architecture")
    if architecture is None:
        raise InputError(f"{type(model).__name__} was not made by timm.create_model, so it could not be loaded again")
    version = 2 if _is_quantized(model) else 1
    return {
        "architecture": architecture,
        "num_classes": getattr(model, "num_classes", pretrained.get("num_classes")),
        "model_args": dict(model_args or {}),
        "pretrained_cfg": pretrained,
        "lowrank_vit": {"format": version, "recipe": report.get("recipe"), "layers": _layer_configs(model)},
    }


def save(
    model: nn.Module,
    folder: str | Path,
    report: Mapping[str, Any] | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
) -> None:
    """Write the model's folder whole or not at all: it is made beside ``folder`` and then renamed.

    ``report``: the one that ``compress`` attached to the model, unless another is given; where it has the entry
    "quantization", the file is float16, and the sizes on disk are added to the report. ``model_args``: further
    arguments of ``timm.create_model`` that the dense model was made with.
    Raises ``InputError`` where ``folder`` holds something already, cannot be written, or the model was not compressed.
    """
    target = Path(folder)
    report = report if report is not None else getattr(model, "compression_report", None)
    if report is None:
        raise InputError("this model was not made by lowrank_vit.compress: compress it first, or hand in a report")
    if _is_quantized(model) and "quantization" not in report:
        raise InputError("the report of this quantised model has no entry 'quantization': add what quantize returned")
    config = _config(model, report, model_args)
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        write_tensors(temporary / WEIGHTS, _stored(model, "quantization" in report), {"format": "pt"})
        write_json(temporary / "report.json", _with_sizes(report, file_bytes(temporary)))
        write_json(temporary / "config.json", config)
        temporary.chmod(0o755)
        temporary.replace(target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _stored(model: nn.Module, half: bool) -> dict[str, Tensor]:
    """The tensors as the file has them; rounding them to float16 changes nothing in a model that ``quantize`` made."""
    state = model.state_dict()
    return {name: tensor.half() if half and tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _with_sizes(report: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The report of a quantised model with the bytes on disk; ``dense_fp16`` is without the file's header."""
    if "quantization" not in report:
        return dict(report)
    return {
        **report,
        "quantization": {**report["quantization"], "file_bytes": size},
        "bytes": {"dense_fp16": 2 * report["params"]["dense"], "file": size},
    }


def check_free(folder: Path) -> None:
    """Raise ``InputError`` unless ``folder`` can be made, or is empty: nothing that was there is ever lost."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise InputError(f"{folder} exists already: choose another --out, or --resume to keep a finished model")
    parent = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=parent):
            pass
    except OSError as error:
        raise InputError(f"cannot write into {parent}: {error.strerror or error}; choose another --out") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ``InputError`` for a missing, broken or foreign file."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {path.parent} is not the folder of a compressed model") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): save the model again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object: save the model again")
    return value


def load(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
    """The compressed or quantised model in a folder, in eval mode.

    The architecture is rebuilt by timm, its compressed layers by their ranks, its quantised ones by their bits, and the
    weights loaded strictly. ``dtype``: of the floating values in memory; None: that of the file, but float32 for a
    float16 or bfloat16 file, on every device: CPUs are slow in half precision, and the values are the same. Ask for
    ``torch.float16`` to have half the memory on a GPU. Packed codes stay packed.
    Raises ``InputError`` for a folder that is no such model, is broken, or is of a newer format.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    own = config.get("lowrank_vit")
    if not isinstance(own, dict) or not isinstance(own.get("layers"), dict):
        raise InputError(f"{folder / 'config.json'} has no 'lowrank_vit' entry: this is not a compressed model")
    if own.get("format") not in FORMATS:
        raise InputError(
            f"{folder} is of format {own.get('format')!r}, this version reads {FORMATS}: upgrade lowrank-vit"
        )
    import lowrank_vit.models  # noqa: F401  (the stand-ins register with timm)

    try:
        check_architecture(config)
        model = timm.create_model(
            config["architecture"],
            pretrained=False,
            num_classes=config["num_classes"],
            pretrained_cfg=config["pretrained_cfg"],
            **config["model_args"],
        )
        for name, layer in own["layers"].items():
            check_layer(name, layer, model.get_submodule(name))
            replace_module(model, name, _empty_layer(layer, model.get_submodule(name)))
        call_every_layer(model)
    except Exception as error:  # timm's architectures fail in their own ways on arguments that make no sense
        raise InputError(
            f"{folder / 'config.json'} does not describe a model ({error}): save the model again"
        ) from None
    _load_weights(model, folder / WEIGHTS, dtype)
    return model.to(device).eval()


def _empty_layer(config: Mapping[str, Any], dense: nn.Module) -> nn.Module:
    """The module of a shape, without its weights; ``dense``: what it takes the place of."""
    config = dict(config)
    kind = config.pop("kind", "linear")
    if kind == "attention":
        return LowRankAttention(**config)
    if kind == "mlp":
        return SmallMlp(act=getattr(dense, "act", nn.Identity()), **config)
    if kind != "linear":
        raise ValueError(f"a layer of unknown kind {kind!r}")
    n, d = config["in_features"], config["out_features"]
    if "bits" in config:
        return QuantizedLinear(n, d, config["bits"], config["bias"])
    correction = config["correction"]
    module = None if correction is None else empty_module(**correction)
    return LowRankLinear(n, d, config["rank"], config["bias"], module)


def _load_weights(model: nn.Module, path: Path, dtype: torch.dtype | None) -> None:
    try:
        tensors = load_file(path)
        check_tensors(tensors)
    except ValueError as error:
        raise InputError(f"{path} cannot be used ({error}): save the model again") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): it is missing, truncated or no safetensors file") from None
    floating = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)
    model.to(dtype or (torch.float32 if floating.itemsize < 4 else floating))
    for name, empty in model.state_dict().items():
        if name not in tensors or (tensors[name].is_floating_point() and empty.is_floating_point()):
            continue
        if tensors[name].dtype != empty.dtype:
            raise InputError(f"{path} does not fit config.json: {name} is {tensors[name].dtype}, not {empty.dtype}")
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        first = [line.strip() for line in str(error).splitlines()[1:2]]
        raise InputError(f"{path} does not fit config.json: {first[0] if first else error}") from None


def load_model_args(folder: str | Path) -> dict[str, Any]:
    """The ``model_args`` that a model was saved with, so that what is made of it can be saved with them, too."""
    arguments = read_json(Path(folder) / "config.json").get("model_args")
    return arguments if isinstance(arguments, dict) else {}


def load_report(folder: str | Path) -> dict[str, Any]:
    """The report of a saved model. Raises ``InputError`` for one without what every report has."""
    path = Path(folder) / "report.json"
    report = read_json(path)
    try:
        check_report(report)
    except ValueError as error:
        raise InputError(f"{path} is no report ({error}): save the model again") from None
    return report
