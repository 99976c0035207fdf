"""What Table V measures beside accuracy: zeros, and the energy that channels share."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.jobs.job import Job
from experiments.jobs.ledger import Ledger
from experiments.measures import scan_units
from experiments.measures.scan import prune, shared_energy
from lowrank_vit.architectures.linears import find_sites
from lowrank_vit.modules.scans import Scan
from tests.support.vmambas import maps, vmamba


def test_the_smallest_weights_of_every_layer_become_zeros() -> None:
    model, dense = vmamba(), vmamba()
    assert prune(model, 0.0) is None
    assert prune(model, 0.4) == pytest.approx(0.4, abs=0.01)
    for site in find_sites(model):
        pruned, before = (each.get_submodule(site.name).weight for each in (model, dense))
        kept = pruned != 0
        assert torch.equal(pruned[kept], before[kept])
        assert before[~kept].abs().max() <= before[kept].abs().min()
        assert (~kept).double().mean() == pytest.approx(0.4, abs=0.01)
    assert torch.equal(model.classifier.head.weight, dense.classifier.head.weight)


class Pictures:
    """Stands in for a data module: the same small images calibrate and are evaluated."""

    calibration_fingerprint = "maps"

    def calibration_dataloader(self) -> list[tuple[Tensor, Tensor]]:
        return [(maps(24), torch.arange(24) % 5)]

    val_dataloader = calibration_dataloader


@pytest.mark.slow
def test_scans_among_a_recipes_units_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_units, "SECONDS", 0.2)
    model, ledger = vmamba(), Ledger(tmp_path / "stages.json", lambda said: None)
    job = Job("vmamba", True, "digits", "24+24", "best", 0.6, 0, measure="scan_units")
    found = scan_units.measure(model, Pictures(), job, ledger)  # type: ignore[arg-type]
    scans = [name for name, module in model.named_modules() if isinstance(module, Scan)]
    assert set(found["scans"]) == set(scans)  # at nearly the most that can be removed
    assert found["scans_replaced"] == len(scans)
    assert found["scans_energy"] == pytest.approx(shared_energy(model, found["scans"], maps(24)))
    assert found["images"] == 24
