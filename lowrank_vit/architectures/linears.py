"""Linear layers of any model: which ones are compressed, what stays dense, and their weights."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank_vit.modules.surgery import get_linear
from lowrank_vit.records.moments import as_float64
from lowrank_vit.records.sites import Site
from lowrank_vit.runtime.errors import InputError

logger = logging.getLogger(__name__)
POSITIONS = r"(rel_pos|cpb_mlp|meta_mlp)\."  # layers that make position biases, from coordinates
LAYERS = r"layers?(?=\.\d+\.(attention|self_attn|mlp)\.)"  # of Hugging Face's models
ROWS = rf"(blocks|transformer(_encoder)?|network\.\d+|{LAYERS})"  # nearly all models', MobileViT's and NesT's, VOLO's
BLOCK_LINEARS = rf"(^|\.){ROWS}\.\d+\.(?!(.*\.)?{POSITIONS})"
# small: compressed on request only
EXPECTED_DENSE = rf"(^|\.)(downsample|features\.\d+\.reduction)\b|(^|\.|_){POSITIONS}"
TIMM_S = ("timm.layers.linear", "Linear")  # computes the same as torch's
MERGE = "merge the adapter first, make what was added permanent, or give the layer a weight of its own"

HEADS = ("classifier", "head", "heads")
EMBEDDINGS = ("patch_embedding", "patch_embeddings", "conv_proj")


def is_linear(module: object) -> TypeGuard[nn.Linear]:
    """Tell whether a module computes ``x W^T + b`` and nothing else, so that a smaller layer can take its place."""
    return isinstance(module, nn.Linear) and not beyond_linear(module)


def beyond_linear(layer: nn.Linear) -> str:
    """Say what an ``nn.Linear``, or a subclass, does beside ``x W^T + b``; nothing for a plain one."""
    kind = type(layer)
    own = kind.forward is not nn.Linear.forward and (kind.__module__, kind.__name__) != TIMM_S
    if own or "forward" in vars(layer) or kind.__call__ is not nn.Module.__call__:
        return f"a {kind.__name__} with a forward pass of its own"
    if isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "never called, as its MultiheadAttention reads its weight"
    further = [name for name in (*layer._parameters, *layer._modules) if name not in ("weight", "bias")]
    if further:
        return f"a {kind.__name__} with {further[0]!r} beside its weight and bias"
    if _is_hooked(layer):
        return "changed by a hook"
    return f"tied to {layer.shared_with!r} by a shared parameter" if is_shared(layer) else ""


def computes_as_known(module: nn.Module) -> bool:
    """Tell whether all parts of a module compute what their classes do: none is marked as changed, or an odd linear layer."""
    unread = nn.modules.linear.NonDynamicallyQuantizableLinear  # of torch's attention
    return not any(
        getattr(part, "changed", False)
        or (
            isinstance(part, nn.Linear) and not isinstance(part, unread) and not is_shared(part) and beyond_linear(part)
        )
        for part in module.modules()
    )


def is_shared(layer: nn.Module) -> bool:
    """Tell whether a layer has a parameter of another place in its model, by the last ``mark_shared``."""
    return hasattr(layer, "shared_with")


def mark_shared(model: nn.Module) -> nn.Module:
    """Let every linear layer remember the name of another one with which it shares a parameter, in place.

    A layer at two places shares with itself. No layer alone can tell, and changing it would change the other place.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, layer in layers.items():
        vars(layer).pop("shared_with", None)
        others = [other for each in layer.parameters(recurse=False) for other in owners[id(each)] if other != name]
        if others:
            vars(layer)["shared_with"] = others[0]
    return model


@torch.no_grad()
def _is_hooked(layer: nn.Linear) -> bool:
    """Tell whether hooks change what a layer computes, by a call; those that only watch do not."""
    if not layer._forward_pre_hooks and not layer._forward_hooks:
        return False
    x = torch.linspace(-1, 1, 2 * layer.in_features).to(layer.weight).view(1, 2, -1)
    try:
        return not torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    except Exception:  # whatever the hook expects, it is more than a layer's input
        return True


def find_sites(model: nn.Module, pattern: str = BLOCK_LINEARS) -> list[Site]:
    """Find the plain linear layers whose name contains a match of ``pattern``, in the model's order.

    What computes more (``beyond_linear``) is left out, and so is a layer that shares a parameter (``mark_shared``).
    The head and Swin's ``downsample.reduction`` are outside the default; ask for them by a pattern.
    Raises ``InputError`` where nothing matches, and where the model has been compressed already.
    """
    try:
        matches = re.compile(pattern).search
    except (re.error, TypeError) as error:  # or no text at all
        raise InputError(f"the site pattern {pattern!r} is not a regular expression: {error}") from None
    chosen: Callable[[str], Any] = in_blocks(model) if pattern == BLOCK_LINEARS else matches
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    beyond = beyond_linears(model)
    sites = [
        Site(name, module.in_features, module.out_features, module.bias is not None)
        for name, module in linears.items()
        if chosen(name) and name not in beyond
    ]
    if not sites:
        odd = next((name for name in beyond if chosen(name)), None)
        if odd is not None:
            raise InputError(f"no layer to compress: {odd!r} is {beyond[odd]}, no plain linear layer: {MERGE}")
        wanted = "stands in a block (blocks.0, blocks.1, ...)" if pattern == BLOCK_LINEARS else f"matches {pattern!r}"
        names = ", ".join(list(linears)[:3])
        remedy = f"its linear layers are named like {names}; choose some by `sites=`" if names else "the model has none"
        raise InputError(f"no linear layer of {type(model).__name__} {wanted}: {remedy}")
    return sites


def in_blocks(model: nn.Module) -> Callable[[str], bool]:
    """Return what tells by its name whether a module stands in a block: one of a known name, or of a known kind."""
    known = tuple(f"{name}." for name, module in model.named_modules() if getattr(module, "in_blocks", False))
    positions = re.compile(rf"(^|\.){POSITIONS}").search
    return lambda name: re.search(BLOCK_LINEARS, name) is not None or (name.startswith(known) and not positions(name))


def beyond_linears(model: nn.Module) -> dict[str, str]:
    """Return what each ``nn.Linear`` that is no plain one does beside ``x W^T + b``, by name."""
    reasons = {name: beyond_linear(layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    return {name: reason for name, reason in reasons.items() if reason}


def tell_beyond(reasons: Mapping[str, str]) -> None:
    """Log in one line which layers stay dense, being no plain linear layers."""
    if reasons:
        name, reason = next(iter(reasons.items()))
        more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        logger.warning("left dense: %s%s, being %s: %s", name, more, reason, MERGE)


def left_dense(model: nn.Module, compressed: Iterable[str]) -> dict[str, int]:
    """Find the layers outside ``compressed`` (names of layers, or of modules around them) that multiply by a matrix.

    Returns the numbers of parameters by name, for linear layers, convolutions that mix channels and PyTorch's own
    attention; the classifier and the patch embedding are meant to stay dense, so they are not included.
    """
    classifier = getattr(model, "get_classifier", lambda: tuple(classifiers(model).values()))()
    heads = classifier if isinstance(classifier, tuple) else (classifier,)
    meant = {id(module) for head in heads for module in head.modules()}
    inside = tuple(f"{name}." for name in compressed)
    counts = {}
    for name, module in model.named_modules():
        if id(module) in meant or f"{name}.".startswith((*inside, *patch_embedding(model))):
            continue
        mixing = isinstance(module, nn.modules.conv._ConvNd) and module.groups < module.in_channels
        if mixing or isinstance(module, nn.Linear | nn.MultiheadAttention):
            counts[name] = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    return counts


def classifiers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the classifiers of a model that is not timm's, by name: one, or two of a distilled DeiT."""
    return {name: module for name, module in model.named_children() if name.endswith(HEADS)}


def patch_embedding(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of the patch embedding, by the names that the libraries have for it."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    listed = [names] if isinstance(names, str) else names
    embeddings = [name for name, _ in model.named_modules() if name.endswith(EMBEDDINGS)]
    return ("patch_embed.", *(f"{name}." for name in (*listed, *embeddings)))


def called(layer: nn.Linear) -> nn.Linear:
    """Make a layer that is called of one whose weight torch's attention reads; both have the same parameters."""
    with torch.device("meta"):
        made = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    made.weight, made.bias = layer.weight, layer.bias
    return made


def call_every_layer(model: nn.Module) -> nn.Module:
    """Set timm's attention of BEiT, EVA and Swin V2 to call its layer ``qkv``, in place; the outputs are the same.

    Otherwise its separate biases of queries and values are passed with the layer's weight to a function, so that the
    layer's input cannot be captured and no other module can replace the layer.
    """
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):
            setattr(module, "qkv_bias_separate", True)  # noqa: B010  (an attribute that type checkers do not know)
    return model


def separate_bias(model: nn.Module, site: Site) -> Tensor | None:
    """Return the bias that timm's attention of BEiT, EVA and Swin V2 adds after its layer ``qkv``, (3 h s,), or None."""
    parent, _, name = site.name.rpartition(".")
    owner = model.get_submodule(parent)
    queries, values = (getattr(owner, attribute, None) for attribute in ("q_bias", "v_bias"))
    if name != "qkv" or not isinstance(queries, Tensor) or not isinstance(values, Tensor):
        return None
    return torch.cat([queries, torch.zeros_like(queries), values]).detach()


def without_value_bias(attention: nn.Module) -> nn.Module:
    """Zero the value bias of timm's attention of BEiT, EVA and Swin V2, in place: the output's bias holds it."""
    bias = getattr(attention, "v_bias", None)
    if isinstance(bias, nn.Parameter):
        bias.data.zero_()
    return attention


def dense_linear(model: nn.Module, site: Site) -> tuple[Tensor, Tensor]:
    """Return weight (n, d) and bias (d,) of a linear layer, float64; zeros where it has no bias."""
    layer = get_linear(model, site)
    weight, bias = as_float64(layer.weight), layer.bias
    bias = separate_bias(model, site) if bias is None else bias
    return weight.T, weight.new_zeros(layer.out_features) if bias is None else as_float64(bias)


def dense_weight(model: nn.Module, site: Site) -> Tensor:
    """Return the dense weight of a site, (n, d), float64."""
    return as_float64(get_linear(model, site).weight).T
