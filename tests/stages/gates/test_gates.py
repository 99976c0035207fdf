"""Gates: all open they change nothing, closed they cost what is counted, and no trace of them is left."""

import copy

import pytest
import torch

from lowrank_vit import Recipe, analyse
from lowrank_vit.methods.s2vite import LearntHeads
from lowrank_vit.methods.spvit_he import LearntUnits
from lowrank_vit.methods.wdpruning import LearntParts
from lowrank_vit.modules.counting import input_size, multiply_accumulates, parameter_count
from lowrank_vit.records.curves import RankPlan
from lowrank_vit.records.sites import HEAD, HIDDEN, INPUT, OUTPUT, VALUE
from lowrank_vit.stages.gates import GRADUAL
from lowrank_vit.stages.gates.expected import Prices
from lowrank_vit.stages.gates.gates import gated
from lowrank_vit.stages.gates.learnt_gates import LearntGates, make_gates, sites_of
from tests.support.cases import few, in_turn
from tests.support.gradual import masks
from tests.support.models import KINDS, images, outputs, tiny

METHODS = GRADUAL.names()


@pytest.mark.parametrize(("name", "kind"), few(in_turn(METHODS, KINDS), 3))
def test_open_gates_change_nothing_bit_by_bit(name: str, kind: str) -> None:
    model, data = tiny(kind), images(3, kind)
    dense, before = outputs(model, data), list(model.state_dict())
    gates = make_gates(model, GRADUAL.get(name)())
    with gated(model, gates):
        assert all(gate.open().all() and (gate() == 1).all() for gate in gates.values())
        assert torch.equal(outputs(model, data), dense)
        assert len(model.state_dict()) > len(before)
    assert list(model.state_dict()) == before


@pytest.mark.parametrize(("unit", "kind"), in_turn([HEAD, VALUE, HIDDEN, INPUT], KINDS))
def test_a_closed_gate_is_a_zero_column(unit: str, kind: str) -> None:
    """What a part adds is multiplied by zero: the same as no weights that read it."""
    model, data = tiny(kind).double(), images(3, kind).double()
    gates, same = masks(model, [unit]), copy.deepcopy(model)
    for gate in gates.values():
        closed = ~gate.mask.repeat_interleave(gate.place.repeat)
        same.get_submodule(gate.place.layer).weight.data[:, closed] = 0
    with gated(model, gates):
        torch.testing.assert_close(outputs(model, data), outputs(same, data), rtol=1e-12, atol=1e-12)


PRUNED = {  # units with gates: the recipe whose groups fold them
    (HEAD, HIDDEN): {"whole_heads": LearntHeads(), "mlp": LearntUnits()},
    (HEAD, HIDDEN, OUTPUT): {"gated": LearntParts()},
}


@pytest.mark.parametrize(("units", "kind"), in_turn(PRUNED, KINDS))
def test_what_hardened_gates_leave_costs_what_is_expected(units: tuple[str, ...], kind: str) -> None:
    """Parameters and multiply-accumulates counted on the folded model are those told from the masks."""
    model, gates = tiny(kind), masks(tiny(kind), units, seed=3)
    method = GRADUAL.get("importance")()
    recipe = Recipe(name="masks", units=PRUNED[units], gradual=method, labelled=True)
    scores = {name: gate.scores() for name, gate in gates.items()}
    learnt = LearntGates(scores, {"protocol": "none"})
    analysis = analyse(model, [images(8, kind)], recipe, learnt=learnt)
    plan: dict[str, int | None] = {}
    for curve in analysis.curves:
        module, _, unit = curve.name.rpartition(".")
        own = [gate.mask for gate in gates.values() if gate.place.module == module]
        kept = sum(int(mask.sum()) for mask in own) - (unit == "part")
        plan[curve.name] = None if all(mask.all() for mask in own) else kept  # a module with all of it stays as it is
    small, _ = analysis.apply(RankPlan(plan))
    opens = {name: gate.open() for name, gate in gates.items()}
    cost = Prices.of(model, sites_of(model)).expected(opens)
    assert cost.parameters == parameter_count(small)
    assert cost.macs == multiply_accumulates(small, input_size(model))
