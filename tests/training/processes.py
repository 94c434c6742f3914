"""Two processes that a test started, as Lightning wants to be told of them."""

from __future__ import annotations

import os
from datetime import timedelta

from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy


def two_processes(rank: int, port: int) -> DDPStrategy:
    """The strategy of process `rank` of two, which meet at `port`."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))

    class Rank(LightningEnvironment):
        @property
        def creates_processes_externally(self) -> bool:
            return True

        def local_rank(self) -> int:
            return rank

    environment = Rank()
    environment.set_global_rank(rank)
    environment.set_world_size(2)
    return DDPStrategy(cluster_environment=environment, process_group_backend="gloo", timeout=timedelta(seconds=60))
