"""What Table V measures beside accuracy: zeros, and the energy that channels share."""

import pytest
import torch

from experiments.measures.scan import prune
from lowrank_vit.architectures.linears import find_sites
from tests.support.vmambas import vmamba


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
