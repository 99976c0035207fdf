"""Which images, in which order, on which process."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import DistributedSampler

from lowrank_vit.runtime.errors import InputError
from lowrank_vit.runtime.processes import rank_and_world

CALIBRATION, EVALUATION, TRAINING = 0, 2, 3  # separate streams of one seed; each epoch has its own
HELD_OUT = 256  # images, unless another number is asked for
LARGEST_HELD_OUT = 0.1  # of a training split


def draw(size: int, count: int, seed: int, stream: int) -> list[int]:
    """Draw ``count`` distinct indices below ``size`` at random, or all if there are fewer; a smaller draw is a prefix."""
    return _random(seed, stream).permutation(size)[:count].tolist()


def draw_balanced(labels: Sequence[int], count: int, seed: int, stream: int) -> list[int]:
    """Draw like ``draw``, in rounds of one index from every class that has any left, the classes in random order.

    Raises ``InputError`` where a label is -1.
    """
    array = np.asarray(labels)
    if (array < 0).any():
        raise InputError(
            "a class-balanced calibration needs labels, and these images have none: leave out `stratified=`"
        )
    random = _random(seed, stream)
    shuffled = random.permutation(len(array))
    grouped = shuffled[np.argsort(array[shuffled], kind="stable")]
    counts = np.unique(array[grouped], return_counts=True)[1]
    rounds = np.concatenate([np.arange(number) for number in counts])
    turns = np.repeat(random.permutation(len(counts)), counts)
    return grouped[np.lexsort((turns, rounds))][:count].tolist()


def hold_out(order: Sequence[int], calibration: int, held_out: int) -> tuple[list[int], list[int]]:
    """Take the first ``calibration`` of some shuffled indices, and the last ``held_out``, at most a tenth of all.

    No index is in both: where there are too few, calibration gets what is left.

    >>> hold_out(range(20), 15, 2), hold_out(range(4), 2, 9)
    (([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [18, 19]), ([0, 1], [3]))
    """
    kept = len(order) - min(held_out, max(int(LARGEST_HELD_OUT * len(order)), 1), len(order) - 1)
    return list(order[: min(calibration, kept)]), list(order[kept:])


def _random(seed: int, stream: int) -> np.random.RandomState:
    # numpy promises that this generator's numbers never change between versions; not so the newer ones, nor torch's
    return np.random.RandomState([seed % 2**32, stream])


def hash_indices(indices: Sequence[int]) -> str:
    """Return the sha256, in hexadecimal, of the indices as little-endian 64-bit integers, in their order."""
    return hashlib.sha256(np.asarray(indices, dtype="<i8").tobytes()).hexdigest()


class Draw(NamedTuple):
    """Hold the position of one training image, and the seed of its random crop and flip."""

    position: int
    seed: int


class ShardSampler(DistributedSampler[int]):
    """Yield every index below ``size`` exactly once over all processes, in order: ``rank, rank + world, ...``.

    It derives from ``DistributedSampler`` so that Lightning does not replace it by its own, which pads.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def _own(self) -> range:
        rank, world = rank_and_world()
        return range(rank, self.size, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self._own())

    def __len__(self) -> int:
        return len(self._own())

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the order is the same in every epoch."""


class EpochSampler(DistributedSampler[Draw]):
    """Shuffle the indices by (seed, epoch), so that a run resumed at epoch k sees what the first run saw.

    Each comes with a seed for its augmentation, which makes it independent of the number of workers, too. The last
    round is filled up from the start of the order, since all processes must take as many steps.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; Lightning calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Draw]:
        rank, world = rank_and_world()
        generator = _random(self.seed, TRAINING + self.epoch)
        order = generator.permutation(self.size)
        seeds = generator.randint(2**31, size=self.size)
        for turn in range(rank, len(self) * world, world):
            yield Draw(int(order[turn % self.size]), int(seeds[turn % self.size]))

    def __len__(self) -> int:
        return -(-self.size // rank_and_world()[1])
