"""The description of a family of models: its blocks, what each adds to the stream, and the modules in it.

A family is one file that registers a class. Only it uses the types of the library that the models come from.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from lowrank_vit.architectures.linears import BLOCK_LINEARS, dense_linear, find_sites, in_blocks
from lowrank_vit.architectures.parts import (
    ADVICE,
    UnknownWholeError,
    described_mlp,
    described_mlp_weights,
    described_pool,
)
from lowrank_vit.modules.fold import AttentionWeights, MlpWeights
from lowrank_vit.modules.surgery import output_linear
from lowrank_vit.records.sites import AttentionSite, MlpSite, TableSite
from lowrank_vit.runtime.registry import Registry

Stream = Callable[[Tensor, Sequence[int]], Tensor]
Sites = list[AttentionSite | MlpSite]
Refusals = dict[str, UnknownWholeError]  # by the name of the module


def unwalked(model: nn.Module, kind: str) -> UnknownWholeError:
    """Return the error for a model with blocks of another kind, through which the stream cannot be passed one by one."""
    reason = f"{type(model).__name__} has blocks of the kind {kind}, whose outputs cannot be refitted or measured"
    return UnknownWholeError(reason, f"{ADVICE}, or one without refit and measured losses")


def flat_tokens(x: Tensor) -> Tensor:
    """Flatten a stream (B, ..., n) to its tokens, (B, T, n)."""
    return x.flatten(1, -2)


def flat_stream(tokens: Tensor, shape: Sequence[int]) -> Tensor:
    """Give tokens (B, T, n) the shape of the stream, (B, ..., n)."""
    return tokens.reshape(shape)


def with_inputs(layer: nn.Module, compute: Callable[..., Any], *given: Tensor, **options: Tensor) -> tuple[Any, Tensor]:
    """Return what a function computes, and what it gives a layer on the way."""
    seen: list[Tensor] = []
    with layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        return compute(*given, **options), seen[0]


@dataclass(frozen=True)
class Branch:
    """Describe one of the terms that a block adds to its stream: that of its attention, or of its MLP.

    ``add`` computes what it adds to x, (B, ..., n), given what else the block is given. ``tokens`` orders a stream's tokens
    as the output layer makes them, (B, T, n), and ``stream`` is its inverse, which drops padding: Swin's attention sees
    them shifted and cut into windows.
    """

    block: nn.Module
    name: str  # of the module in the block
    output: str  # of its last layer, in the module; a smaller module has it under the same name
    add: Callable[..., Tensor]
    scale: Tensor | None = None  # shape: (n,), by which the output is multiplied before it is added (LayerScale)
    tokens: Callable[[Tensor], Tensor] = flat_tokens
    stream: Stream = flat_stream
    normed: bool = False  # whether a norm follows the output layer
    beside: bool = False  # whether it sees what the branch before it sees, not what that one adds, too
    norm: str = ""  # in the block: the norm that its module, and nothing else, reads token by token
    layer_scale: str = ""  # in the block: the module that multiplies the output layer's outputs by ``scale``

    @property
    def output_name(self) -> str:
        return f"{self.name}.{self.output}"

    @property
    def output_layer(self) -> nn.Linear:
        """Return the layer that makes the output; of a pair of factors, the second."""
        return output_linear(self.block.get_submodule(self.output_name))

    def with_inputs(self, x: Tensor, **given: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is added to x, and the output layer's input that it is made from."""
        return with_inputs(self.output_layer, self.add, x, **given)


class Family(ABC):
    """Describe the parts of the models of one family, without holding a model."""

    about: str  # one line for the table of families
    general: ClassVar[bool] = False  # whether any family that knows more of a model goes before

    @abstractmethod
    def takes(self, model: nn.Module) -> bool:
        """Tell whether the model is of this family."""

    @abstractmethod
    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        """Return the modules that the stream goes through one after the other, by name.

        Raises ``InputError`` for a model with blocks of another kind.
        """

    @abstractmethod
    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        """Return what a block adds to the stream, in order; nothing for a step that is not a block."""

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        """Describe an attention module; None for another module. Raises ``InputError`` for one with further parts."""
        return None

    def attention_weights(self, model: nn.Module, site: AttentionSite) -> AttentionWeights:
        """Return the weights of an attention module, with timm's attribute names, whose logits lose directions, too."""
        module: Any = model.get_submodule(site.name)
        table = getattr(module, "relative_position_bias_table", None)
        return AttentionWeights(*dense_linear(model, site.qkv), float(module.scale), module.proj.weight.dtype, table)

    def mlp(self, name: str, module: nn.Module) -> MlpSite | None:
        """Describe an MLP, or None for another module. Raises ``InputError`` for one with further parts."""
        return described_mlp(name, module)

    def mlp_weights(self, model: nn.Module, site: MlpSite) -> MlpWeights:
        """Return the weights of an MLP."""
        return described_mlp_weights(model, site)

    def positions(self, model: nn.Module) -> TableSite | None:
        """Describe the position embedding that is added to the stream as it is; None where there is none."""
        return None

    def token_blocks(self, model: nn.Module) -> list[str]:
        """Name the blocks whose tokens can be reduced. Raises ``InputError`` for a model that must keep its tokens."""
        raise UnknownWholeError(
            f"the tokens of {type(model).__name__} cannot become fewer", "choose a plain ViT or DeiT"
        )

    def read_tokens(self, model: nn.Module) -> int | None:
        """Return how many of the first tokens the head reads; None where it reads all."""
        return None

    def head(self, model: nn.Module, x: Tensor) -> Tensor:
        """Compute the model's outputs from the stream after the last step."""
        return model.forward_head(model.norm(x))  # type: ignore[operator]  # as all of timm's have it

    def survey(self, model: nn.Module) -> tuple[Sites, Refusals]:
        """Find every attention module and MLP of every block, in the model's order, and why others cannot be taken.

        Behind the blocks comes attention pooling, with its own MLP.
        Refused are modules with parts that their smaller form cannot have (normalised queries, gates), and those around
        a linear layer that belongs to no attention module or MLP: it would stay dense.
        """
        sites: Sites = []
        refusals: Refusals = {}
        for name, module in (*block_modules(model), *pool_modules(model)):
            try:
                site = described_pool(name, module) or self.attention(name, module) or self.mlp(name, module)
            except UnknownWholeError as error:
                refusals[name] = error
            else:
                sites += [] if site is None else [site]
        covered = {layer for site in sites for layer in site.layers}
        for linear in find_sites(model, BLOCK_LINEARS):
            owner = linear.name.rpartition(".")[0]
            if linear.name not in covered and owner not in refusals:
                kind = type(model.get_submodule(owner))
                reason = f"{linear.name!r} belongs to {kind.__module__}.{kind.__name__}, which is not known as a whole"
                refusals[owner] = UnknownWholeError(reason)
        return sites, refusals

    def modules(self, model: nn.Module) -> Sites:
        """Find every attention module and MLP of every block. Raises ``InputError`` where one is refused by ``survey``."""
        sites, refusals = self.survey(model)
        for error in refusals.values():
            raise error
        return sites


def block_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of all blocks by name, without those that make position biases."""
    inside = in_blocks(model)
    return ((name, module) for name, module in model.named_modules() if inside(f"{name}."))


def pool_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every attention pooling of timm's, and its MLP, by name."""
    from timm.layers import AttentionPoolLatent

    for name, module in model.named_modules():
        if type(module) is AttentionPoolLatent:
            yield name, module
            if module.mlp is not None:
                yield f"{name}.mlp", module.mlp


FAMILIES: Registry[type[Family]] = Registry("family of models", __package__ or "")


def family_of(model: nn.Module) -> Family:
    """Find the family of a model. Raises ``InputError`` for a model of no family."""
    families = {name: FAMILIES.get(name)() for name in FAMILIES.names()}
    for family in sorted(families.values(), key=lambda family: family.general):
        if family.takes(model):
            return family
    known = ", ".join(f"{name} ({family.about})" for name, family in families.items())
    raise UnknownWholeError(
        f"the blocks of {type(model).__name__} are not known as a whole", f"known families: {known}; {ADVICE}"
    )


def survey(model: nn.Module) -> tuple[Sites, Refusals]:
    """Find what can be taken as a whole, and why other modules cannot, by name; "" is a model of no family."""
    try:
        family = family_of(model)
    except UnknownWholeError as error:
        return [], {"": error}
    return family.survey(model)


def checked_attention(site: AttentionSite) -> AttentionSite:
    """Return the site unchanged. Raises ``InputError`` where queries, keys, values and outputs differ in width."""
    inner = site.proj.in_features
    if site.qkv.out_features not in (inner, 3 * inner) or site.proj.out_features != site.qkv.in_features:
        raise UnknownWholeError(f"{site.name!r} has queries, keys, values or outputs of different widths")
    if site.head_width > site.in_features:
        raise UnknownWholeError(f"{site.name!r} has heads that are wider than the stream")
    return site


class _ReachedError(Exception):
    """Signal that the first step was reached: the rest of the forward pass is not needed."""


def first_inputs(model: nn.Module, step: nn.Module, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the input of the model's first step for each batch."""
    seen: list[Tensor] = []

    def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _ReachedError

    with step.register_forward_pre_hook(stop):
        for batch in batches:
            try:
                model(batch.to(next(model.parameters())))
            except _ReachedError:
                yield seen.pop()
