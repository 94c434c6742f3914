"""The order of training items: anew for every epoch, batches of sequences that are about equally long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elm_neuro.training.loop._sampling import Remaining

POOL = 64  # batches whose items are sorted by length together


class BucketOrder(Remaining):
    """Items in an order that depends on (seed, epoch) alone, so that consecutive ones, a batch in each process, are
    about equally long: drawn, sorted within pools of 64 batches, the batches drawn once more.

    A batch that is not full comes last. Where the items of an epoch do not go into the processes evenly, the first ones
    are taken once more.

    Args:
        dataset: what is sampled; only its size matters.
        lengths: of each item.
        batch_size: items of a batch in each process.
        num_replicas: processes.
        rank: of this one.
        seed: of the order.
    """

    def __init__(
        self, dataset: Any, lengths: NDArray[np.int64], *, batch_size: int, num_replicas: int, rank: int, seed: int
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.lengths, self.batch_size = lengths, batch_size

    def __iter__(self) -> Iterator[int]:
        resumed, batches = self.resume
        mine = self.order()[self.rank :: self.num_replicas]
        return iter(mine[batches * self.batch_size if self.epoch == resumed else 0 :].tolist())

    def order(self) -> NDArray[np.int64]:
        """Items of the epoch for all processes: entry ``k`` is for process ``k % num_replicas``."""
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, self.epoch))))
        together = self.batch_size * self.num_replicas
        drawn = random.permutation(len(self.lengths))
        pools = [drawn[start : start + POOL * together] for start in range(0, drawn.size, POOL * together)]
        if np.ptp(self.lengths) if self.lengths.size else 0:
            pools = [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools]
        batches = [pool[start : start + together] for pool in pools for start in range(0, pool.size, together)]
        full = [batch for batch in batches if batch.size == together]
        rest = [batch for batch in batches if batch.size < together]
        order = np.concatenate([*(full[k] for k in random.permutation(len(full))), *rest, np.empty(0, dtype=np.int64)])
        return np.concatenate((order, order[: self.total_size - order.size]))
