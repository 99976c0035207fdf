"""Blocks, attention and MLPs of classes that nobody knows, exchanged for timm's parts that compute the same.

What a module computes is guessed from the linear layers and norms in it, and believed only where the guess gives the same
outputs: on random tokens, in float64, with random weights, so that a part that is still zero cannot hide. Anything else
stays as it is. Only what stands in a list (a name with a number) is tried, since heads and stems do not.
"""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, permutations, product
from typing import Any

import torch
from timm.layers import Attention, LayerScale, Mlp
from torch import Tensor, nn

from lowrank_vit.architectures.base import family_of
from lowrank_vit.architectures.encoder_parts import EncoderBlock, made_mlp, refuse_more, torch_attention
from lowrank_vit.architectures.linears import is_linear
from lowrank_vit.modules.surgery import replace_module
from lowrank_vit.runtime.errors import InputError

LIBRARIES = ("timm", "transformers", "torchvision", "diffusers", "lowrank_vit")  # they have families of their own
LISTED = re.compile(r"(^|\.)\d+(\.|$)")
MOST = 6  # linear layers of a block: queries, keys, values, outputs, and two of the MLP
LENGTHS = (5, 9)  # of the random sequences: a table of positions fits one of them at most
TOLERANCE = 1e-6  # relative to the largest output: some norms compute in float32
TRIALS = 2000
NO_ACTIVATION = re.compile("drop|path|rearrange|reduce|identity|softmax", re.IGNORECASE)
GUESSES = (nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.SiLU())  # where the activation is no module
HEADS_AT_MOST = 64
CORE = "core"


class BranchStep(nn.Module):
    """Compute what one branch adds to a stream of tokens: a norm, then attention or an MLP.

    ``whole``: whether it returns the stream with that added; otherwise whoever calls it adds it.
    """

    in_blocks = True  # whatever it is called in its model

    def __init__(self, norm: nn.Module, core: nn.Module, whole: bool) -> None:
        super().__init__()
        self.norm, self.core, self.whole, self.walks = norm, core, whole, False

    @property
    def adds(self) -> bool:
        """Tell whether the stream after it is its input plus its output."""
        return not self.whole

    def added(self, x: Tensor) -> Tensor:
        """Return what is added to x: (B, T, n)."""
        return self.core(self.norm(x))

    def forward(self, x: Tensor, *further: Any, **options: Any) -> Tensor:
        """Map (B, T, n) to (B, T, n)."""
        refuse_more(*further, **options)
        return x + self.added(x) if self.whole else self.added(x)


class SelfAttention(nn.Module):
    """Wrap timm's attention, or its smaller form, for a block that calls it as torch's own, for the outputs alone."""

    def __init__(self, core: nn.Module, batch_first: bool) -> None:
        super().__init__()
        self.core, self.batch_first = core, batch_first

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *masks: Any, **options: Any) -> tuple[Tensor, None]:
        """Map (B, T, n), or (T, B, n), to the same shape; there are no weights beside it."""
        hidden = any(isinstance(each, Tensor) for each in (*masks, *options.values()))
        if key is not query or value is not query or hidden or options.get("is_causal"):
            raise InputError("this attention sees its own tokens, all of them: choose a recipe for single layers")
        x = query if self.batch_first else query.transpose(0, 1)
        y: Tensor = self.core(x)
        return y if self.batch_first else y.transpose(0, 1), None


@dataclass(frozen=True)
class Found:
    """Hold the parts of a module, told by their kinds and shapes, in the order in which it has them."""

    linears: list[nn.Linear]
    attentions: list[nn.MultiheadAttention]
    norms: list[nn.Module]
    scales: list[nn.Parameter]
    acts: list[nn.Module]
    drops: list[nn.Dropout]
    heads: list[int]
    factors: list[float]  # of the logits, as the module has them


def exchange_unknown(model: nn.Module) -> nn.Module:
    """Exchange every unknown block, or else its branches, its attention and its MLP, in place, and return the model.

    A model whose blocks a family knows as they are stays as it is.
    """
    if _known(model):
        return model
    done, hopeless = tuple[str, ...](), set[tuple[Any, ...]]()
    for name, module in list(model.named_modules()):
        kind, inside = type(module), f"{name}.".startswith(done) if done else False
        if not inside and kind.__module__.partition(".")[0] in LIBRARIES:
            done = (*done, f"{name}." if name else "")
        if inside or not LISTED.search(name) or not _is_unknown(module):
            continue
        looks = (kind, *(tuple(parameter.shape) for parameter in module.parameters()))
        made = None if looks in hopeless else _imitation(module)
        if made is None:
            hopeless.add(looks)
            continue
        replace_module(model, name, made.train(module.training))
        done = (*done, f"{name}.")
        _mark_list(model, name)
    for name, module in list(model.named_modules()):
        if type(module) is nn.MultiheadAttention and LISTED.search(name) and not f"{name}.".startswith(done or " "):
            _exchange_attention(model, name, module)
    return model


def _known(model: nn.Module) -> bool:
    try:
        family = family_of(model)
        return not family.general and not family.survey(model)[1]
    except InputError:
        return False


def _exchange_attention(model: nn.Module, name: str, attention: nn.MultiheadAttention) -> None:
    """Exchange torch's attention in a block of a kind that stays, if the block's outputs are the same, in place."""
    parts = name.split(".")
    around = [".".join(parts[:place]) for place in range(len(parts) - 1, 0, -1)]
    owner = next((outer for outer in around if _is_unknown(model.get_submodule(outer))), "")
    made = torch_attention(attention)
    if not owner or made is None or attention._forward_hooks or attention._forward_pre_hooks:
        return
    inner = name.removeprefix(f"{owner}.")
    seed = _random_copy(model.get_submodule(owner))
    trial, core = copy.deepcopy(seed), torch_attention(seed.get_submodule(inner))  # type: ignore[arg-type]
    assert core is not None
    replace_module(trial, inner, SelfAttention(core.eval(), attention.batch_first))
    try:
        same = _same(seed, trial, attention.embed_dim)
    except Exception:  # the block takes something else, or uses the weights of attention
        return
    if same:
        replace_module(model, name, SelfAttention(made, attention.batch_first).train(attention.training))
        _mark_list(model, name)


def _mark_list(model: nn.Module, name: str) -> None:
    """Let everything in the list that an exchanged module stands in count as a block, whatever it is called."""
    parts = name.split(".")
    place = next(place for place, part in enumerate(parts) if part.isdigit())
    for item in model.get_submodule(".".join(parts[:place])).children():
        item.in_blocks = True  # type: ignore[assignment]


def _is_unknown(module: nn.Module) -> bool:
    """Tell whether a module is of a class of the user's, or a sequence of torch's own parts."""
    origin = type(module).__module__.partition(".")[0]
    return type(module) is nn.Sequential or origin not in (*LIBRARIES, "torch")


def _imitation(module: nn.Module) -> nn.Module | None:
    """Return the first guess that computes what a module computes; None where none does."""
    found = _parts(module)
    if found is None or next(_guesses(found), None) is None:
        return None
    seed = _random_copy(module)
    parts = _parts(seed)
    if parts is None:
        return None
    for guess, trial in islice(zip(_guesses(found), _guesses(parts), strict=True), TRIALS):
        try:
            same = _same(seed, trial())
        except Exception:  # the module expects something else than tokens, or the guess does not fit its widths
            same = False
        if same:
            return guess()
    return None


def _random_copy(module: nn.Module) -> nn.Module:
    """Copy a module with random weights, float64, on the CPU, in evaluation mode."""
    made, generator = copy.deepcopy(module), torch.Generator().manual_seed(0)
    if any(tensor.is_meta for tensor in made.state_dict().values()):
        made = made.to_empty(device="cpu")
    made = made.cpu().double().eval()
    for parameter in made.parameters():
        wide = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3
        around = 0.0 if parameter.dim() > 1 else 0.7
        parameter.data = around + wide * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made


@torch.no_grad()
def _same(module: nn.Module, guess: nn.Module, width: int = 0) -> bool:
    """Tell whether two modules have the same outputs on random tokens, of the width that the guess takes."""
    generator, guess = torch.Generator().manual_seed(1), guess.eval()
    width = width or next(layer.in_features for layer in guess.modules() if isinstance(layer, nn.Linear))
    for length in LENGTHS:
        x = torch.randn(2, length, width, generator=generator, dtype=torch.float64)
        theirs, ours = module(x.clone()), guess(x)
        if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
            return False
        if not bool((theirs - ours).abs().max() <= TOLERANCE * theirs.abs().max()):
            return False
    return True


def _parts(module: nn.Module) -> Found | None:
    """Find the parts of a module; None where there are too many, or others beside them."""
    linears, attentions, norms, acts, drops, scales = [], [], [], [], [], list[nn.Parameter]()
    heads, factors, inside = list[int](), list[float](), tuple[str, ...]()
    for name, part in module.named_modules():
        if part._forward_hooks or part._forward_pre_hooks or getattr(part, "parametrizations", None):
            return None
        if inside and name.startswith(inside):
            continue
        heads += [value for key, value in vars(part).items() if "head" in key and _is_count(value)]
        factors += [value for key, value in vars(part).items() if "scale" in key and isinstance(value, float)]
        own = list(part.parameters(recurse=False))
        if isinstance(part, nn.MultiheadAttention):
            attentions.append(part)
            inside = (*inside, f"{name}.")
        elif is_linear(part):
            linears.append(part)
        elif isinstance(part, nn.Linear) or len(linears) > MOST:
            return None
        elif isinstance(part, nn.Dropout):
            drops.append(part)
        elif own and _is_norm(part):
            norms.append(part)
        elif own and all(_is_row(each) for each in own):
            scales += own
        elif own:
            return None
        elif not list(part.children()) and not NO_ACTIVATION.search(type(part).__name__) and part is not module:
            acts.append(part)
    if not (linears or attentions) or len(linears) > MOST or len(attentions) > 1 or len(norms) > 2:
        return None
    return Found(linears, attentions, norms, scales, acts, drops, heads, factors)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_row(parameter: nn.Parameter) -> bool:
    return parameter.numel() == parameter.shape[-1] > 1 if parameter.dim() else False


def _is_norm(module: nn.Module) -> bool:
    named = isinstance(module, nn.LayerNorm | nn.RMSNorm) or "norm" in type(module).__name__.lower()
    return named and not list(module.children())


def _guesses(found: Found) -> Iterator[Callable[[], nn.Module]]:
    """Yield what a module with such parts may be; each is made of the parts themselves, when it is called."""
    linears = found.linears
    width = linears[0].in_features if linears else 0
    if not found.scales and len(found.norms) < 2:
        cores = [*_attentions(linears, found), *(_mlps(linears, found) if len(linears) == 2 else ())]
        for core, whole in product(cores, (False, True)):
            if found.norms or whole:
                norm = found.norms[0] if found.norms else nn.Identity()
                yield lambda core=core, norm=norm, whole=whole: BranchStep(norm, core(), whole)  # type: ignore[misc]
            else:
                yield core
    if len(found.norms) != 2 or len(found.scales) not in (0, 2):
        return
    for attending, thinking in _split(linears, found):
        for attention, mlp in product(_attentions(attending, found), _mlps(thinking, found)):
            for norms, scales, first in product(permutations(found.norms), permutations(found.scales), (True, False)):
                yield lambda a=attention, m=mlp, n=norms, s=scales, f=first: _block(a(), m(), n, s, f, width)  # type: ignore[misc]


def _split(linears: list[nn.Linear], found: Found) -> Iterator[tuple[list[nn.Linear], list[nn.Linear]]]:
    """Yield the layers of attention and those of the MLP, whichever the block has first."""
    if len(linears) == (2 if found.attentions else 4) or (len(linears) == 6 and not found.attentions):
        yield linears[:-2], linears[-2:]
        if len(linears) > 2:
            yield linears[2:], linears[:2]


def _block(
    attn: nn.Module, mlp: nn.Module, norms: Sequence[nn.Module], scales: Sequence[nn.Parameter], first: bool, width: int
) -> EncoderBlock:
    made = EncoderBlock((norms[0], norms[1]), attn, mlp, norm_first=first)
    made.masked, made.walks = False, False
    for name, gamma in zip(("ls1", "ls2"), scales, strict=False):
        with torch.device("meta"):
            scale = LayerScale(width)
        scale.gamma = gamma if gamma.dim() == 1 else nn.Parameter(gamma.detach().flatten(), gamma.requires_grad)
        replace_module(made, name, scale)
    return made


def _mlps(linears: list[nn.Linear], found: Found) -> Iterator[Callable[[], Mlp]]:
    """Yield MLPs of two layers, by activation."""
    first, second = linears
    if (first.in_features, first.out_features) == (second.out_features, second.in_features):
        for act in found.acts or GUESSES:
            yield lambda act=act: made_mlp(first, copy.deepcopy(act), second, found.drops[-2:])  # type: ignore[misc]


def _attentions(linears: list[nn.Linear], found: Found) -> Iterator[Callable[[], nn.Module]]:
    """Yield attention of one layer for queries, keys and values or of three, by heads, scale and order of the outputs."""
    if found.attentions:
        if not linears:
            yield lambda: torch_attention(found.attentions[0])  # type: ignore[misc,return-value]
        return
    if len(linears) not in (2, 4):
        return
    *inputs, output = linears
    inner, n = output.in_features, inputs[0].in_features
    made = sum(layer.out_features for layer in inputs)
    if made != 3 * inner or output.out_features != n or any(layer.in_features != n for layer in inputs):
        return
    known = [heads for value in found.heads if inner % value == 0 for heads in (value, inner // value)]
    known = list(dict.fromkeys(known))
    heads = known or [count for count in range(1, HEADS_AT_MOST + 1) if inner % count == 0]
    orders = ("chd", "hcd", "hdc") if len(inputs) == 1 else ("chd",)
    for count, order in product(heads, orders):
        usual = (inner // count) ** -0.5
        for factor in dict.fromkeys((usual, *found.factors, n**-0.5, 1.0)):
            yield lambda c=count, o=order, f=factor / usual: _attention(inputs, output, c, o, f, found.drops)  # type: ignore[misc]


def _attention(
    inputs: Sequence[nn.Linear], output: nn.Linear, heads: int, order: str, factor: float, drops: Sequence[nn.Dropout]
) -> Attention:
    """Make timm's attention. ``order``: of the outputs by (c) queries, keys and values, (h) heads and (d) dimensions.

    ``factor``: by which queries are multiplied, since timm's attention divides the logits by the root of a head's width.
    """
    layer, inner = inputs[0], output.in_features
    attn_drop, proj_drop = (*(drop.p for drop in drops[:2]), 0.0, 0.0)[:2]
    with torch.device("meta"):
        made = Attention(
            layer.in_features,
            heads,
            inner // heads,
            qkv_bias=layer.bias is not None,
            proj_bias=output.bias is not None,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
        )
    made.proj = output
    if len(inputs) == 1 and order == "chd" and factor == 1:
        made.qkv = layer
        return made

    def ordered(parts: list[Tensor], trained: bool) -> nn.Parameter:
        whole = torch.cat([part.detach() for part in parts])
        if order != "chd":
            sizes = {"c": 3, "h": heads, "d": inner // heads}
            grouped = whole.unflatten(0, [sizes[axis] for axis in order])
            whole = grouped.permute(*(order.index(axis) for axis in "chd"), *range(3, grouped.dim())).flatten(0, 2)
        whole = whole.clone()
        whole[:inner] *= factor
        return nn.Parameter(whole, trained)

    made.qkv.weight = ordered([each.weight for each in inputs], layer.weight.requires_grad)
    if layer.bias is not None:
        made.qkv.bias = ordered([each.bias for each in inputs], layer.bias.requires_grad)
    return made
