"""What a model will cost once its closed gates are removed: counted from the gates, without making the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_vit.modules.conv_mixer import KERNELS, mixer_cost
from lowrank_vit.modules.counting import input_size, multiply_accumulates, parameter_count, tokens_per_image
from lowrank_vit.records.costs import NOTHING, Cost
from lowrank_vit.records.factors import SplitSite
from lowrank_vit.records.sites import HEAD, HIDDEN, INPUT, MIXER, OUTPUT, ROW, VALUE, AttentionSite, MlpSite

GatedSite = AttentionSite | MlpSite | SplitSite
Open = Mapping[str, Tensor]  # by the unit's kind: which parts stay, (count,), bool


def dense_cost(site: GatedSite, tokens: int) -> Cost:
    """Return the cost of a module as it is; ``tokens``: of an image."""
    if isinstance(site, SplitSite):
        return site.costs(tokens)[-1]
    if isinstance(site, AttentionSite) and not site.dense_logits:
        return site.head_costs(tokens).dense
    return sum((each.dense for each in site.costs(tokens).values()), NOTHING)


def pruned(site: AttentionSite | MlpSite, inner: Any, outputs: Any, inputs: Any = None, fewer: Any = 0) -> Any:
    """Count the parameters of a module with ``inner`` heads, or hidden units, and ``outputs`` outputs; tensors will do, too.

    ``inputs``: how many are read, by default all; ``fewer``: values that the heads have lost. An output that is not made
    costs neither weights nor a bias. An MLP that reads fewer inputs has a bias, which takes up the mean of the others.
    """
    n = site.in_features if inputs is None else inputs
    if isinstance(site, MlpSite):
        bias = site.inputs[0].bias | (n < site.in_features)
        return (n + bias) * site.rows * inner + inner * outputs + outputs
    kept = inner * site.head_width
    return 2 * n * kept + kept + (kept - fewer) * (n + outputs) + outputs + inner * _position_biases(site)


def mixer_costs(site: AttentionSite, tokens: int) -> list[Cost]:
    """Return the costs of nothing, of a 1x1 and a 3x3 convolution, and of attention; the first token is not a patch."""
    mixers = [Cost(*mixer_cost(site.in_features, site.head_width, kernel, max(0, tokens - 1))) for kernel in KERNELS]
    return [*mixers, dense_cost(site, tokens)]


def module_cost(site: GatedSite, tokens: int, still_open: Open) -> Cost:
    """Return the cost of the module that hardened gates leave; one whose gates are all open stays as it is.

    A head without values loses its queries and keys, too; fused attention pads values to their width.
    """
    if all(bool(mask.all()) for mask in still_open.values()):
        return dense_cost(site, tokens)
    if isinstance(site, SplitSite):
        return site.cost(int(still_open[ROW].sum()), tokens)
    if isinstance(site, AttentionSite) and MIXER in still_open:
        return mixer_costs(site, tokens)[int(still_open[MIXER].sum())]
    outputs, inputs = (
        _count(still_open, unit, whole)
        for unit, whole in ((OUTPUT, site.linears[-1].out_features), (INPUT, site.in_features))
    )
    if isinstance(site, MlpSite):
        hidden = _count(still_open, HIDDEN, site.fc2.in_features)
        weights = inputs * site.rows * hidden + hidden * outputs
        return Cost(pruned(site, hidden, outputs, inputs), tokens * weights)
    values = _values(site, still_open)
    kept, d = int(values.sum()), site.proj.out_features
    if site.dense_logits:
        own = site.costs(tokens)[VALUE]
        less = Cost((d - outputs) * (kept + 1), tokens * (d - outputs) * kept)
        return own.fixed + own.unit * kept + less * -1
    heads = int(values.unflatten(0, (-1, site.head_width)).any(1).sum())
    fewer = heads * site.head_width - kept  # values that its living heads have lost
    window = site.window_size
    keys = tokens if window is None else window[0] * window[1] + site.class_token
    weights = inputs * (2 * heads * site.head_width + kept) + kept * outputs
    parameters = pruned(site, heads, outputs, inputs, fewer)
    return Cost(parameters, tokens * (weights + 2 * keys * heads * site.head_width))


def _position_biases(site: AttentionSite) -> int:
    if site.window_size is None:
        return 0
    height, width = site.window_size
    return (2 * height - 1) * (2 * width - 1) + 3 * site.class_token


def _values(site: AttentionSite, still_open: Open) -> Tensor:
    """Return which dimensions of values stay, (heads * width,)."""
    if HEAD in still_open:
        return still_open[HEAD].repeat_interleave(site.head_width)
    return still_open.get(VALUE, torch.ones(site.proj.in_features, dtype=torch.bool))


def _count(still_open: Open, unit: str, whole: int) -> int:
    return int(still_open[unit].sum()) if unit in still_open else whole


@dataclass(frozen=True)
class Prices:
    """Count the cost of a model with gates, from its modules, the tokens that they see, and what it costs as it is."""

    sites: Sequence[GatedSite]
    tokens: Mapping[str, int]  # of an image, by the names of the layers that make modules' outputs
    whole: Cost

    @classmethod
    def of(cls, model: nn.Module, sites: Sequence[GatedSite]) -> "Prices":
        """Count a model; without the size of its images, multiply-accumulates are left out."""
        size = input_size(model)
        if size is None:
            return cls(sites, {}, Cost(parameter_count(model)))
        tokens = tokens_per_image(model, [site.linears[-1].name for site in sites], size)
        return cls(sites, tokens, Cost(parameter_count(model), multiply_accumulates(model, size)))

    def expected(self, opens: Mapping[str, Tensor]) -> Cost:
        """Return what the whole model will cost; ``opens``: which parts of units stay, by the units' names."""
        total = self.whole
        for site in self.sites:
            prefix = f"{site.name}."
            own = {name.removeprefix(prefix): mask.cpu() for name, mask in opens.items() if name.startswith(prefix)}
            count = self.tokens.get(site.linears[-1].name, 0)
            total = total + module_cost(site, count, own) + dense_cost(site, count) * -1
        return total
