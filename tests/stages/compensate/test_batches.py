import itertools

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.stages.compensate.inputs import SeededBatches, count_images, make_loader


def batches_of(count, batch_size, steps, seed):
    return list(SeededBatches(count, batch_size, steps, seed, lambda: 0))


def test_every_pass_sees_every_image_once_in_its_own_order():
    batches = batches_of(12, 4, 9, 0)
    assert [len(batch) for batch in batches] == [4] * 9
    passes = [list(itertools.chain(*batches[i : i + 3])) for i in (0, 3, 6)]
    assert all(sorted(order) == list(range(12)) for order in passes)
    assert passes[0] != passes[1] != passes[2] != list(range(12))


def test_incomplete_batches_are_left_out_unless_there_is_no_other():
    assert [len(batch) for batch in batches_of(10, 4, 5, 0)] == [4] * 5
    assert [sorted(batch) for batch in batches_of(3, 64, 2, 0)] == [[0, 1, 2]] * 2


def test_the_seed_counts():
    one, again, two = (batches_of(12, 4, 6, seed) for seed in (0, 0, 1))
    assert one == again != two


def test_a_run_goes_on_where_it_stopped():
    whole, resumed = batches_of(12, 4, 10, 3), SeededBatches(12, 4, 10, 3, lambda: 7)
    assert list(resumed) == whole[7:]
    assert len(resumed) == 10


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch(monkeypatch, world):
    whole = batches_of(20, 8, 6, 1)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        shares.append(batches_of(20, 8, 6, 1))
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(itertools.chain(*parts)) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_same_batches_as_its_tensor(workers):
    images, sampler = torch.randn(10, 1, 2, 2), SeededBatches(10, 4, 6, 2, lambda: 0)
    dataset = TensorDataset(images, torch.arange(10))
    loader = DataLoader(dataset, batch_size=3, num_workers=workers)
    from_loader, from_tensor = make_loader(loader, sampler), make_loader(images, sampler)
    assert len(from_loader) == len(from_tensor) == 6
    for (left, labels), (right, indices) in zip(from_loader, from_tensor, strict=True):
        assert torch.equal(left, right)
        assert torch.equal(labels, indices)
        assert torch.equal(images[labels], right)


def test_images_are_counted():
    assert count_images(torch.zeros(5, 1, 2, 2)) == 5
    assert count_images(DataLoader(TensorDataset(torch.zeros(7, 1)))) == 7
    with pytest.raises(InputError, match="no calibration images"):
        count_images(torch.zeros(0, 1, 2, 2))

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(InputError, match="not a stream"):
        count_images(DataLoader(Stream()))
