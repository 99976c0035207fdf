"""What CONTRIBUTING.md promises: each of these is one new class, registered, and used from end to end at once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from torch import Tensor, nn

from experiments.jobs.job import Job
from experiments.tables.table_best import TABLE
from lowrank_vit import InputError, analyse, compress, get_recipe, load, save
from lowrank_vit.architectures.base import FAMILIES, Branch, Family, family_of
from lowrank_vit.architectures.linears import dense_linear, dense_weight, find_sites
from lowrank_vit.architectures.parts import described_linear
from lowrank_vit.compression.recipe import Recipe, recipe_of
from lowrank_vit.modules.counting import parameter_count
from lowrank_vit.modules.fold import AttentionWeights, fold_attention
from lowrank_vit.modules.low_rank_attention import LowRankAttention
from lowrank_vit.records.costs import COSTS, Cost
from lowrank_vit.records.curves import ErrorCurve, RankPlan
from lowrank_vit.records.factors import Factors
from lowrank_vit.records.moments import Moments
from lowrank_vit.records.report import LayerEntry
from lowrank_vit.records.sites import AttentionSite, MlpSite, Site
from lowrank_vit.runtime.registry import Registry
from lowrank_vit.stages.calibrate.statistics import STATISTICS, Seen, Statistic, Sums
from lowrank_vit.stages.calibrate.stream import calibrate
from lowrank_vit.stages.decompose import DECOMPOSITIONS, project_output
from lowrank_vit.units.base import UNITS, Folded, Needs, Ranks, Settings, Unit
from tests.support.extending import registered
from tests.support.models import ARGUMENTS, images, outputs, tiny


# --8<-- [start:decomposition]
@dataclass(frozen=True)
class RowScaled:
    """SVD of the weight with every row scaled by its own norm to a power."""

    power: float = 0.5

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, weight: Tensor, moments: Moments) -> Factors:
        """Decompose ``weight``, (n, d)."""
        return project_output(weight, weight.norm(dim=1, keepdim=True) ** self.power * weight)


def test_a_new_decomposition(tmp_path: Path) -> None:
    with registered(DECOMPOSITIONS, "row_scaled", RowScaled):
        recipe = get_recipe("svd").but(**{"decomposition": "row_scaled", "decomposition.power": 1.0})
        small, report = compress(tiny(), [images(8)], recipe, 0.4)
        assert report["recipe_fields"]["decomposition"] == "row_scaled"
        assert report["recipe_fields"]["hyperparameters"]["decomposition"] == {"power": 1.0}
        assert recipe_of(report["recipe_fields"]) == recipe
        save(small, tmp_path / "small", report, model_args=ARGUMENTS["vit"])
    assert torch.equal(outputs(load(tmp_path / "small"), images(3)), outputs(small, images(3)))


# --8<-- [end:decomposition]


class ToyAttention(nn.Module):
    """Attention of two heads by hand: of no library's type."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, 12)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        return self.proj(((q @ k.mT) * 6**-0.5).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


class ToyBlock(nn.Module):
    """Attention that is added twice over."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = ToyAttention()

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, 12)."""
        return x + 2 * self.attn(x)


class Toy(nn.Module):
    """Columns of an image as tokens, two blocks, the mean token to five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(8, 12), nn.Sequential(ToyBlock(), ToyBlock())
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 1, 8, 8)."""
        return self.head(self.blocks(self.embed(x[:, 0])).mean(1))


# --8<-- [start:family]
class ToyFamily(Family):
    """How the toy is taken apart."""

    about = "toys"

    def takes(self, model: nn.Module) -> bool:
        return isinstance(model, Toy)

    def steps(self, model: nn.Module) -> dict[str, nn.Module]:
        return {f"blocks.{name}": block for name, block in model.blocks.named_children()}

    def branches(self, step: nn.Module) -> tuple[Branch, ...]:
        return (Branch(step, "attn", "proj", lambda x: 2 * step.attn(x), torch.full((12,), 2.0)),)

    def attention(self, name: str, module: nn.Module) -> AttentionSite | None:
        if not isinstance(module, ToyAttention):
            return None
        qkv, proj = (described_linear(f"{name}.{each}", getattr(module, each)) for each in ("qkv", "proj"))
        return AttentionSite(name, replace(qkv, heads=2), proj, 6)

    def attention_weights(self, model: nn.Module, site: AttentionSite) -> AttentionWeights:
        return AttentionWeights(*dense_linear(model, site.qkv), 6**-0.5, model.embed.weight.dtype)

    def mlp(self, name: str, module: nn.Module) -> MlpSite | None:
        return None

    def head(self, model: nn.Module, x: Tensor) -> Tensor:
        return model.head(x.mean(1))


def test_a_new_family() -> None:
    """With heads, measured losses and refitted outputs: the whole of ``best``."""
    torch.manual_seed(0)
    model, data = Toy().double(), images(64).double()
    for parameter in model.parameters():
        parameter.data *= 3  # so that attention matters
    with pytest.raises(InputError, match="not known as a whole"):
        compress(model, [data], get_recipe("best").only("attention", "mlp"), 0.3)
    with registered(FAMILIES, "toy", ToyFamily):
        assert isinstance(family_of(model), ToyFamily)
        analysis = analyse(model, data.split(16), "heads", held_out=[data], device="cpu")
        whole, _ = analysis.apply(RankPlan({curve.name: 12 for curve in analysis.curves}))
        torch.testing.assert_close(outputs(whole, data), outputs(model, data), rtol=1e-9, atol=1e-9)
        small, report = analysis.compress(0.3)
    assert parameter_count(small) == report["params"]["compressed"] <= 0.7 * parameter_count(model)
    assert report["refit"]["kl_held_out"] < report["refit"]["kl_held_out_before"]
    assert {entry["part"] for entry in report["measured_losses"]} == {curve.name for curve in analysis.curves}


# --8<-- [end:family]


# --8<-- [start:statistic]
def input_cubed(seen: Seen, sums: Sums) -> None:
    """``input_cubed``, (n,): the sum of ``x^3`` over tokens."""
    sums.add("input_cubed", seen.rows.double().pow(3).sum(0))


def test_a_new_statistic() -> None:
    model, data = tiny(), images(12)
    site = find_sites(model)[0]
    kept: list[Tensor] = []
    model.get_submodule(site.name).register_forward_hook(lambda module, inputs, y: kept.append(inputs[0].detach()))
    with registered(STATISTICS, "input_cubed", Statistic(input_cubed)):
        moments = calibrate(model, [site], {"input_cubed"}, data.split(5))[site.name]
    truth = torch.cat([x.flatten(0, 1) for x in kept]).double().pow(3).mean(0)
    torch.testing.assert_close(moments.mean("input_cubed"), truth)
    with pytest.raises(ValueError, match="input_cubed"):
        calibrate(model, [site], {"input_cubed"}, [data])


# --8<-- [end:statistic]


# --8<-- [start:cost]
def energy(cost: Cost) -> int:
    """Price a parameter as five multiply-accumulates."""
    return 5 * cost.parameters + cost.macs


@pytest.mark.parametrize("recipe", ["exact", "heads"])
def test_a_new_cost(recipe: str) -> None:
    model, data = tiny(), images(16)
    with registered(COSTS, "energy", energy):
        analysis = analyse(model, data.split(8), recipe, device="cpu")
        plan = analysis.plan(0.3, cost="energy")
        spent = sum(energy(_cost(curve, plan.ranks[curve.name])) for curve in analysis.curves)
        dense = sum(energy(curve.dense) for curve in analysis.curves)
        saved = 0.3 * energy(analysis.dense_cost)
        step = max(energy(curve.unit) for curve in analysis.curves)
        assert dense - spent - step < saved <= dense - spent
        by_parameters = analysis.plan(0.3).ranks
        assert by_parameters != plan.ranks
    with pytest.raises(InputError, match="unknown cost 'energy'"):
        analysis.plan(0.3, cost="energy")


# --8<-- [end:cost]


def _cost(curve: ErrorCurve, rank: int | None) -> Cost:
    return curve.dense if rank is None else curve.fixed + curve.unit * rank


# --8<-- [start:unit]
@dataclass(frozen=True)
class OutputNorm:
    """Rank whole heads by the norm of what they write."""

    needs: ClassVar[tuple[frozenset[str], ...]] = (frozenset({"input_second"}),)

    def __call__(self, site: AttentionSite, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the heads, best first, (h,), and the loss with 0 ... h of them, (h + 1,). weight: (h s, n)."""
        gains = weight.unflatten(0, (site.qkv.heads, -1)).square().sum((1, 2))
        order = gains.argsort(descending=True)
        lost = gains[order].flip(0).cumsum(0).flip(0)
        return order, torch.cat([lost, lost.new_zeros(1)])


HEADS: Registry[Any] = Registry("method for whole heads", "tests.support")
HEADS._scanned = True  # its methods are here


@dataclass(frozen=True)
class HeadUnit(Unit[OutputNorm, tuple[Tensor, Tensor]]):
    """An attention module with the part ``heads``: how many whole heads are kept."""

    site: AttentionSite

    methods: ClassVar[Registry[Any]] = HEADS

    @property
    def linears(self) -> tuple[Site, ...]:
        return (self.site.proj,)

    @classmethod
    def find(cls, model: nn.Module, method: OutputNorm, settings: Settings, sites: str) -> "list[HeadUnit]":
        found = family_of(model).modules(model)
        return [cls(site, method, settings) for site in found if isinstance(site, AttentionSite)]

    def needs(self) -> Needs:
        return {self.site.proj.name: self.method.needs[0]}

    def curves(self) -> list[ErrorCurve]:
        costs = self.site.costs()
        loss = torch.zeros(self.site.qkv.heads + 1) if self.parts is None else self.found[1]
        unit = (costs["query_key"].unit + costs["value"].unit) * self.site.head_width
        dense = costs["query_key"].dense + costs["value"].dense
        return [ErrorCurve(f"{self.name}.heads", loss, unit, dense, costs["value"].fixed)]

    def decompose(self, model: nn.Module, moments: Mapping[str, Moments]) -> dict[str, tuple[Tensor, Tensor]]:
        return {f"{self.name}.heads": self.method(self.site, dense_weight(model, self.site.proj))}

    def cut(self, ranks: Ranks) -> Folded:
        kept = self.found[0][: ranks[f"{self.name}.heads"]].sort().values
        site, width = self.site, self.site.head_width
        dense = family_of(self.model).attention_weights(self.model, site)
        same = torch.eye(width).to(dense.weight).expand(site.qkv.heads, -1, -1)
        chosen = (kept[:, None] * width + torch.arange(width)).flatten()
        weight, bias = dense_linear(self.model, site.proj)
        return Folded(fold_attention(site, dense, (same, same), chosen, same, chosen, weight[chosen], bias))

    def entry(self, cut: Folded | None, ranks: Ranks, compressed: nn.Module) -> LayerEntry:
        params = parameter_count(compressed.get_submodule(self.name))
        errors = {"relative_error": 0.0, "relative_error_held_out": None}
        shape = {"in_features": self.site.in_features, "out_features": self.site.proj.out_features}
        rank = ranks[f"{self.name}.heads"]
        return {"name": self.name, **shape, "rank": rank, "z": None, "params": params, **errors}


def test_a_new_kind_of_unit(tmp_path: Path) -> None:
    """Whole heads: a head that writes nothing costs nothing, and goes first; a loaded model is the saved one."""
    arguments = {**ARGUMENTS["vit"], "num_heads": 4}
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **arguments).eval().double()
    data = images(6).double()
    for block in model.blocks:
        block.attn.proj.weight.data[:, 4:8] = 0  # the second head
    with registered(UNITS, "heads", HeadUnit), registered(HEADS, "output_norm", OutputNorm):
        recipe = Recipe(name="heads", units={"heads": OutputNorm()})
        analysis = analyse(model, [data], recipe, device="cpu")
        small, _ = analysis.apply(RankPlan({curve.name: 3 for curve in analysis.curves}))
        torch.testing.assert_close(outputs(small, data), outputs(model, data), rtol=1e-9, atol=1e-9)
        less, report = analysis.compress(0.2)
        assert report["params"]["compressed"] <= 0.8 * report["params"]["dense"]
        assert report["recipe_fields"]["heads"] == "output_norm"
    kept = [sum(map(bool, m.value.widths)) for m in less.modules() if isinstance(m, LowRankAttention)]
    assert kept
    assert max(kept) < 4
    save(less, tmp_path / "less", report, model_args=arguments)
    assert torch.equal(outputs(load(tmp_path / "less"), data), outputs(less, data))


# --8<-- [end:unit]


# --8<-- [start:row]
def test_a_row_with_another_hyperparameter() -> None:
    """The job's hash, its JSON and the report's record follow."""
    row = next(row for row in TABLE.rows if row.recipe == "loss_aware")
    varied = replace(row, changes={"decomposition.damping": 0.05, "allocator": "greedy"})
    plain, job = (
        Job(row.model, True, "digits", "1297+500", each.recipe, 0.4, 0, changes=each.changes) for each in (row, varied)
    )
    assert job.key != plain.key
    assert Job.from_json(job.as_json()) == job
    assert job.recipe_used().units["decomposition"].damping == 0.05
    _, report = compress(tiny(), [images(8)], job.recipe_used(), 0.4)
    fields = report["recipe_fields"]
    assert fields["hyperparameters"]["decomposition"] == {"centred": True, "damping": 0.05}
    assert (fields["decomposition"], fields["allocator"]) == ("two_sided", "greedy")
    with pytest.raises(InputError, match="unknown hyperparameter of TwoSided 'dampin': did you mean 'damping'"):
        get_recipe("loss_aware").but(**{"decomposition.dampin": 1})
    with pytest.raises(InputError, match="unknown field of a recipe 'decomposer'"):
        get_recipe("loss_aware").but(decomposer="svd")


# --8<-- [end:row]
