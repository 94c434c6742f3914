"""The Lightning data module of a text whose bytes are predicted."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.utils.data import DataLoader

from elm_neuro.datasets import TextStreams, TextStretch, alphabet, read_enwik8, split_text
from elm_neuro.datasets.enwik8._file import ENWIK8_BYTES, HELD_BACK, Bytes
from elm_neuro.training.loop._sampling import Remaining, Resumable, ResumesInEpoch, processes_and_rank


class InOrder(Remaining):
    """All stretches of a process's own streams, one after the other; a resumed epoch goes on behind the last one."""

    def __init__(self, dataset: TextStreams) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)


class TextStreamDataModule(ResumesInEpoch):
    """Stretches of enwik8, or of another text, for a model that carries its state from one to the next.

    An epoch is the text once, in its order; a run that is stopped goes on in the middle of it.

    Args:
        file: enwik8, or its archive enwik8.zip: :func:`elm_neuro.datasets.read_enwik8`.
        num_bytes: its size; None takes any text.
        held_back: bytes that validate, and bytes that test.
        batch_size: streams read side by side in training, of all processes.
        eval_batch_size: the same in evaluation.
        num_steps: steps of a stretch: as far as gradients reach back.

    Raises:
        ValueError: an argument or the file is not as it must be.
    """

    def __init__(
        self,
        file: str | os.PathLike[str],
        *,
        num_bytes: int | None = ENWIK8_BYTES,
        held_back: int = HELD_BACK,
        batch_size: int = 32,
        eval_batch_size: int = 32,
        num_steps: int = 100,
    ) -> None:
        super().__init__()
        self.file, self.num_bytes, self.held_back = file, num_bytes, held_back
        self.batch_size, self.eval_batch_size, self.num_steps = batch_size, eval_batch_size, num_steps
        self._text: tuple[Bytes, Bytes] | None = None  # the text and its alphabet

    def setup(self, stage: str | None = None) -> None:
        """Map the file and find its alphabet."""
        if self._text is None:
            text = read_enwik8(self.file, num_bytes=self.num_bytes)
            self._text = text, alphabet(text)

    @property
    def num_letters(self) -> int:
        """Size of the alphabet: inputs and outputs of the network."""
        return len(self._settled()[1])

    def streams(self, part: str) -> TextStreams:
        """The streams of "train", "valid" or "test" that this process reads."""
        text, letters = self._settled()
        replicas, rank = processes_and_rank(self.trainer)
        batch_size = self.batch_size if part == "train" else self.eval_batch_size
        return TextStreams(
            split_text(text, part, self.held_back),
            letters,
            batch_size=batch_size,
            num_steps=self.num_steps,
            rank=rank,
            replicas=replicas,
        )

    def _settled(self) -> tuple[Bytes, Bytes]:
        self.setup()
        if self._text is None:
            raise RuntimeError("setup must give a text")
        return self._text

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """As Lightning's, but for the flag that the host asks about: it would wait for a GPU."""
        there = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return there._replace(begins=batch.begins) if isinstance(there, TextStretch) else there

    def train_dataloader(self) -> DataLoader[Any]:
        """The training stretches in their order."""
        dataset = self.streams("train")
        sampler = InOrder(dataset)
        sampler.resume = self.resume
        return Resumable(dataset, batch_size=None, sampler=sampler, pin_memory=torch.cuda.is_available())

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation stretches in their order."""
        return self._in_order("valid")

    def test_dataloader(self) -> DataLoader[Any]:
        """The test stretches in their order."""
        return self._in_order("test")

    def _in_order(self, part: str) -> DataLoader[Any]:
        dataset = self.streams(part)
        return DataLoader(dataset, batch_size=None, sampler=InOrder(dataset), pin_memory=torch.cuda.is_available())
