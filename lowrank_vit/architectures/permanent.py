"""A copy of a model as it computes now, without what surrounds it: masks, norms and adapters are part of the weights."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lowrank_vit.modules.counting import input_size
from lowrank_vit.modules.predicting import logits_of
from lowrank_vit.modules.surgery import evaluating, replace_module
from lowrank_vit.runtime.errors import InputError

logger = logging.getLogger(__name__)
# packages whose wrappers only pass on, and what these call the model inside
WRAPPERS = ("torch", "timm", "lightning", "fairscale", "deepspeed", "accelerate")
WRAPPED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def copied(model: nn.Module) -> nn.Module:
    """Copy a model, or the one inside ``DataParallel``, an averaged model or what ``torch.compile`` made; it is told.

    What is computed from other tensors is copied by its value, and made permanent.
    Raises ``InputError`` where it cannot be copied.
    """
    inner = _inside(model)
    if inner is not model:
        logger.warning("the %s inside the %s is compressed", type(inner).__name__, type(model).__name__)
    model = inner
    lazy = next((name for name, each in model.named_parameters() if is_lazy(each)), None)
    if lazy is not None:
        raise InputError(f"{lazy} has no values yet, as its layer is lazy: call the model once, on a batch of images")
    memo: dict[int, Any] = {id(tensor): _value(tensor) for tensor in _computed(model)}
    try:
        made = copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"the model cannot be copied ({reason}): pass one that copy.deepcopy takes") from None
    whole: Any = made
    for name, module in list(made.named_modules()):
        if name and (inner := _inside(module)) is not module:  # of one block
            replace_module(made, name, inner)
    for name, module in made.named_modules():
        _check_own_functions(name or type(made).__name__, module)
    return tell_apart(make_permanent(whole.get_base_model() if _is_adapted(made, "get_base_model") else made))


def _check_own_functions(name: str, module: nn.Module) -> None:
    """Raise ``InputError`` for a function in a method's place, which the copy would call on the original's layers."""
    if isinstance(module, nn.Linear) or not any(isinstance(each, nn.Linear) for each in module.modules()):
        return  # it stays as it is
    for key, value in vars(module).items():
        if isinstance(value, FunctionType) and callable(getattr(type(module), key, None)):
            raise InputError(
                f"{name}.{key} is a function, which a copy would call on this model: make it a method of a class"
            )


def _inside(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers that only pass on what it computes: by their package, or else by running both."""
    names = [name for name, _ in model.named_children()]
    if len(names) != 1 or names[0] not in WRAPPED:
        return model
    inner: nn.Module = getattr(model, names[0])
    known = type(model).__module__.partition(".")[0] in WRAPPERS
    return _inside(inner) if known or _same_outputs(model, inner) else model


def _same_outputs(model: nn.Module, inner: nn.Module) -> bool:
    """Tell whether two models have the same outputs for random images of the size that the inner one takes."""
    outer, own = _outputs(model, inner), _outputs(inner, inner)
    return outer is not None and own is not None and torch.equal(outer, own)


@torch.no_grad()
def _outputs(model: nn.Module, inner: nn.Module) -> Tensor | None:
    """Return a model's outputs for random images of the size that a part of it takes; None where it takes other things."""
    size = input_size(inner)
    if size is None:
        return None
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(next(inner.parameters()))
    with evaluating(model):
        try:
            return logits_of(model(x))
        except Exception:  # it takes something else than images
            return None


def make_permanent(model: nn.Module) -> nn.Module:
    """Exchange weights that are computed for their values, in place, and return the model; it is told in one line."""
    changed = []
    for name, module in list(model.named_modules()):
        if _is_adapted(module, "get_base_layer", "merge"):
            layer: Any = module
            if not layer.disable_adapters:
                layer.merge()
            replace_module(model, name, layer.get_base_layer())
            changed.append(name)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            else:
                continue
            changed.append(name)
        if parametrize.is_parametrized(module):
            _unparametrize(module)
            changed.append(name)
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        logger.warning("masks, adapters or parametrizations of %s%s are made part of the weights", changed[0], more)
    return model


def tell_apart(model: nn.Module) -> nn.Module:
    """Give modules that do not compute what their class does a class of their own, in place; return the model.

    Such have a ``forward`` of their own, or hooks that change inputs or outputs. Hooks that only watch are removed. Linear
    layers are left: their one definition (``is_linear``) asks for both.
    """
    parts = [module for name, module in model.named_modules() if name and not isinstance(module, nn.Linear)]
    hooked = [module for module in parts if module._forward_hooks or module._forward_pre_hooks]
    changing = _changing(model, hooked) if hooked else set()
    for module in parts:
        if "forward" in vars(module) or id(module) in changing:
            kind = type(module)
            module.__class__ = type(
                f"Changed{kind.__name__}", (kind,), {"__module__": kind.__module__, "changed": True}
            )
    for module in hooked:
        if id(module) not in changing:
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
    return model


@torch.no_grad()
def _changing(model: nn.Module, hooked: Sequence[nn.Module]) -> set[int]:
    """Return the ids of modules whose hooks change something, seen by running the model; of all where it cannot be run."""
    changing = set[int]()

    def noting(module: nn.Module, hook: Any) -> Any:
        def note(*given: Any) -> Any:
            before = [value.clone() for value in _tensors(given, 3)]
            made = hook(*given)
            if made is not None or not all(map(torch.equal, before, _tensors(given, 3))):
                changing.add(id(module))
            return made

        return note

    kept = [(hooks, dict(hooks)) for module in hooked for hooks in (module._forward_hooks, module._forward_pre_hooks)]
    for module in hooked:
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            hooks.update({key: noting(module, hook) for key, hook in hooks.items()})
    ran = _outputs(model, model) is not None
    for hooks, own in kept:
        hooks.update(own)
    return changing if ran else set(map(id, hooked))


def _is_adapted(module: nn.Module, *methods: str) -> bool:
    """Tell whether a module is of peft's, and has these methods."""
    return type(module).__module__.startswith("peft.") and all(hasattr(module, method) for method in methods)


@torch.no_grad()
def _unparametrize(module: nn.Module) -> None:
    """Exchange parametrized tensors for their values; torch's own function changes a class that other copies share."""
    parametrized: Any = module.parametrizations
    values = {
        name: (getattr(module, name).detach().clone(), any(each.requires_grad for each in parts.parameters()))
        for name, parts in parametrized.items()
    }
    before = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = before
    for name, (value, trained) in values.items():
        module.register_parameter(name, nn.Parameter(value, trained))


def _computed(model: nn.Module) -> Iterator[Tensor]:
    """Yield every tensor in a model's attributes that was computed with gradients, or made in inference mode."""
    for module in model.modules():
        for value in _tensors(vars(module), 3):
            if not value.is_leaf or value.is_inference():
                yield value


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each, depth - 1)


def _value(tensor: Tensor) -> Tensor:
    """Return a tensor's value, outside graphs and inference mode."""
    with torch.inference_mode(False):
        value = tensor.detach().clone()
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
