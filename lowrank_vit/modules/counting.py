"""Exact sizes: parameters, bytes and multiply-accumulates of a model; and a hash of its weights."""

import hashlib
import logging
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lowrank_vit.modules.quantized_linear import QuantizedLinear
from lowrank_vit.modules.scans import Scan
from lowrank_vit.modules.surgery import hooked
from lowrank_vit.runtime.tensors import METADATA, tensor_bytes_count

logger = logging.getLogger(__name__)
FUSED = {  # torch 2.11 does not count it
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
}


def parameter_count(model: nn.Module) -> int:
    """Count the parameters of the whole model, shared ones once; a quantised layer counts as before quantisation."""
    quantized = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    count = sum(parameter.numel() for parameter in model.parameters())
    for layer in quantized:
        count += layer.in_features * layer.out_features + (0 if layer.bias is None else layer.bias.numel())
    return count


def parameter_bytes(model: nn.Module) -> int:
    """Count the bytes of all parameters in the types they have."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def stored_bytes(model: nn.Module) -> dict[str, int]:
    """Count the bytes of a quantised or float16 model's file by what they are for, without the file's header.

    ``codes_bytes``, ``scales_bytes`` (with the zero points), ``float_bytes`` (all that stays floating, in float16) and
    ``index_bytes`` (the positions of a sparse Z).
    """
    state = model.state_dict()
    floating = sum(2 * tensor.numel() for tensor in state.values() if tensor.is_floating_point())
    integers = sum(tensor.nbytes for tensor in state.values() if not tensor.is_floating_point())
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    codes, scales = sum(layer.codes.nbytes for layer in layers), sum(2 * layer.scale.numel() for layer in layers)
    zero_points = sum(layer.zero_point.nbytes for layer in layers)
    return {
        "codes_bytes": codes,
        "scales_bytes": scales + zero_points,
        "float_bytes": floating - scales,
        "index_bytes": integers - codes - zero_points,
    }


def saved_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """Count the bytes of a saved model's file, its header too, before it is made; floating values are in ``dtype``."""
    shapes = {
        name: tensor.detach().to("meta", dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in model.state_dict().items()
    }
    return tensor_bytes_count(shapes, METADATA)


def input_size(model: nn.Module) -> tuple[int, int, int] | None:
    """Return (C, H, W) of the images that a model takes: from its patch embedding, else its configuration.

    The configuration is timm's, or that of Hugging Face's model or of its vision tower, or what torchvision's model knows.
    """
    channels = (getattr(module, "in_channels", None) for module in model.modules())
    first = next((count for count in channels if isinstance(count, int)), None)  # of a convolution, or of patches
    for module in model.modules():
        size = getattr(module, "img_size", None)
        if first is not None and isinstance(size, tuple | list) and len(size) == 2:
            return first, *size
    configured = (getattr(model, "pretrained_cfg", None) or {}).get("input_size") or _configured_size(model)
    if configured is None:
        return None
    return (configured[0] if first is None else first, *configured[1:])


def _configured_size(model: nn.Module) -> tuple[int, int, int] | None:
    config = getattr(model, "config", None)
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", getattr(model, "image_size", None))  # torchvision's own attribute
    if not isinstance(size, int | tuple | list):
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return getattr(config, "num_channels", 3), height, width


def multiply_accumulates(model: nn.Module, size: Sequence[int]) -> int:
    """Count the multiply-accumulates of the matrix products and convolutions of one image of ``size`` (C, H, W).

    Counted on a real forward pass, so fused attention, windows and replaced layers count as they run.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, *size, dtype=parameter.dtype, device=parameter.device)
    was_training, trained = model.training, [parameter for parameter in model.parameters() if parameter.requires_grad]
    counter = FlopCounterMode(display=False, custom_mapping=FUSED)
    try:
        model.requires_grad_(False)  # the counter fails on a parameter that is a module's input, as a token is
        with torch.inference_mode(), counter:
            model.eval()(image)
    finally:
        model.train(was_training)
        for parameter in trained:
            parameter.requires_grad_()
    return counter.get_total_flops() // 2


def scan_accumulates(model: nn.Module, size: Sequence[int]) -> int:
    """Count the multiply-accumulates of the recurrences of all scans for one image of ``size`` (C, H, W).

    They are no matrix products, so ``multiply_accumulates`` does not have them.
    """
    scans = {name: module for name, module in model.named_modules() if isinstance(module, Scan)}
    tokens = tokens_per_image(model, scans, size) if scans else {}
    return sum(scans[name].recurrence_macs(count) for name, count in tokens.items())


def tokens_per_image(model: nn.Module, names: Iterable[str], size: Sequence[int]) -> dict[str, int]:
    """Count the tokens that linear layers see of one image of ``size`` (C, H, W), by a forward pass; padding counts.

    A layer that is never called as a module is left out.
    """
    tokens: dict[str, int] = {}

    def see(name: str, inputs: tuple[Tensor, ...]) -> None:
        tokens[name] = inputs[0].numel() // inputs[0].shape[-1]

    layers = {name: model.get_submodule(name) for name in names}
    hooks = (
        layer.register_forward_pre_hook(lambda module, inputs, name=name: see(name, inputs))
        for name, layer in layers.items()
    )
    with hooked(hooks), torch.inference_mode():
        model(torch.zeros(1, *size).to(next(model.parameters())))
    return tokens


def model_size(model: nn.Module) -> tuple[int, int | None]:
    """Count parameters, and multiply-accumulates per image; the latter None where the image size is not known."""
    return parameter_count(model), macs_of(model, input_size(model))


def macs_of(model: nn.Module, size: tuple[int, ...] | None) -> int | None:
    """Count multiply-accumulates per image; None where the size is not known, or does not fit, which is logged."""
    try:
        return None if size is None else multiply_accumulates(model, size)
    except (RuntimeError, AssertionError):  # from whichever layer does not fit the size
        logger.warning("the model does not take images of %s, so its MACs are not counted", size)
        return None


def model_hash(model: nn.Module) -> str:
    """Hash all weights and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
