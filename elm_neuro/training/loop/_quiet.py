"""Notes and warnings of Lightning that say nothing about our code."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lightning.fabric.utilities.warnings import PossibleUserWarning


@contextmanager
def without_advice() -> Iterator[None]:
    """Without Lightning's advice on loader processes, which cost more here than they bring, on products of its makers,
    and what it calls that others deprecated.
    """
    with warnings.catch_warnings(), ExitStack() as after:
        for module in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
            notes = logging.getLogger(f"lightning.pytorch.{module}")
            notes.addFilter(_says_something)
            after.callback(notes.removeFilter, _says_something)
        warnings.filterwarnings("ignore", message=".*does not have many workers", category=PossibleUserWarning)
        warnings.filterwarnings("ignore", message="The number of training batches", category=PossibleUserWarning)
        warnings.filterwarnings(
            "ignore", message="Checkpoint directory .* exists and is not empty", category=UserWarning
        )
        warnings.filterwarnings(
            "ignore", message="Total length of `list` across ranks is zero", category=UserWarning
        )  # no validation
        # lightning 2.6 with torch 2.13, in its _pytree.py
        warnings.filterwarnings(
            "ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning
        )
        # our command resolves the names of recipes first; sys.argv stays, since processes on further GPUs are started
        # from it
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended", category=UserWarning)
        # LightningCLI of lightning 2.6 with jsonargparse 4.53
        warnings.filterwarnings(
            "ignore", message=r"\s*By default only one JsonargparseDeprecationWarning", category=DeprecationWarning
        )
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning.pytorch.cli")
        yield


def _says_something(record: logging.LogRecord) -> bool:
    """Neither an advertisement nor that checkpoints may hold code: ours are read as weights and settings alone."""
    message = record.getMessage()
    return "Tip: For seamless" not in message and "`weights_only` was not set" not in message


@contextmanager
def quiet() -> Iterator[None]:
    """The same, and without its notes on devices and progress."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with without_advice():
            yield
    finally:
        logger.setLevel(level)
