"""Windows of NeuronIO's simulations: which ones an epoch has depends on (seed, epoch, index) alone, and one costs a
slice of a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from elm_neuro.datasets._counter import checked_seed, splitmix64
from elm_neuro.datasets._items import Items, collate, index_of, indices_of
from elm_neuro.datasets._processes import SharedNumber
from elm_neuro.datasets.neuronio._simulations import NUM_INPUTS, NUM_SEGMENTS, Simulations, soma_target
from elm_neuro.datasets.neuronio._store import converted_files, open_simulations
from elm_neuro.events import SpikeEvents

Output: TypeAlias = Literal["events", "int8", "frames"]
Window: TypeAlias = tuple[SpikeEvents | Tensor, Tensor, Tensor]

# Kaggle's folders: Spieler et al. validate on the first of ten and test on their own
SPLITS: dict[str, tuple[str, ...]] = {
    "train": tuple(f"full_ergodic_train_batch_{i}" for i in range(2, 11)),
    "valid": ("full_ergodic_train_batch_1",),
    "test": ("Data_test",),
}


class NeuronIODataset(Dataset[Window]):
    """Windows of simulations at random: item ``i`` is (input, spikes, soma), all of `window_ms` steps of 1 ms.

    The input holds +1 for an excitatory and -1 for an inhibitory spike, 1278 channels; spikes (window,) are 0 or 1,
    soma (window,) is :func:`soma_target`, both float32. Simulation and start of item ``i`` in epoch ``e`` are outputs
    2i and 2i + 1 of SplitMix64 in the state ``splitmix64(splitmix64(seed, 0), e)``: the same windows in any process,
    for any number of workers. Every simulation of every file is as likely as any other, as is every start from
    `skip_ms` on.

    Use ``DataLoader(dataset, batch_size=8, collate_fn=NeuronIODataset.collate)``: PyTorch then fetches whole batches at
    once. Files are mapped into memory, in each worker anew, and read where a window lies.

    Args:
        files: converted files, or :class:`Simulations`.
        num_windows: windows of an epoch; the paper's 11,400 batches of 8 are 91,200.
        window_ms: length of a window; 500 ms in the paper.
        skip_ms: how much of the start of each simulation is never in a window; 500 ms in the authors' code.
        output: "events" gives :class:`SpikeEvents`, "int8" and "frames" dense tensors (window, 1278), int8 or float32.
        seed: not negative.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: an argument is out of range, a file is no converted file, or its simulations are shorter than
            `skip_ms` and a window.

    >>> simulation = Simulations(np.arange(9), np.arange(8, dtype=np.uint16) * 100, np.full((1, 8), -67.7),
    ...     np.array([0, 1]), np.array([5]))
    >>> dataset = NeuronIODataset([simulation], num_windows=3, window_ms=4, skip_ms=4)
    >>> dataset[0]
    (SpikeEvents(batch=1, num_steps=4, num_channels=1278, num_events=4), tensor([0., 1., 0., 0.]), tensor([0., 0., 0.,
    0.]))
    """

    def __init__(
        self,
        files: Sequence[str | os.PathLike[str] | Simulations],
        *,
        num_windows: int,
        window_ms: int = 500,
        skip_ms: int = 500,
        output: Output = "events",
        seed: int = 0,
    ) -> None:
        if not files:
            raise ValueError("files must name at least one converted file, got none")
        for name, value, low in (("num_windows", num_windows, 1), ("window_ms", window_ms, 1), ("skip_ms", skip_ms, 0)):
            if not low <= value < 2**31:
                raise ValueError(f"{name} must be in [{low}, 2**31), got {value}")
        if output not in ("events", "int8", "frames"):
            raise ValueError(f'output must be "events", "int8" or "frames", got {output!r}')
        self.files, self.num_windows, self.window_ms, self.skip_ms, self.output = (
            [file if isinstance(file, Simulations) else os.path.abspath(file) for file in files],  # from any folder
            num_windows,
            window_ms,
            skip_ms,
            output,
        )
        self.seed = checked_seed(seed)
        self._opened: dict[int, Simulations] = {}
        sizes = [(len(own), own.num_steps) for own in map(self._file, range(len(self.files)))]
        for file, (_, num_steps) in zip(self.files, sizes, strict=True):
            if num_steps < skip_ms + window_ms:
                raise ValueError(
                    f"simulations must last skip_ms + window_ms = {skip_ms + window_ms} ms or longer, got "
                    f"{num_steps} ms in {file}"
                )
        self._first = np.concatenate(([0], np.cumsum([num for num, _ in sizes])))
        self._num_starts = np.array([num_steps - skip_ms - window_ms + 1 for _, num_steps in sizes])
        self._epoch = SharedNumber()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}  # a map of a file would be pickled with its content

    def _file(self, index: int) -> Simulations:
        if index not in self._opened:
            file = self.files[index]
            self._opened[index] = file if isinstance(file, Simulations) else open_simulations(file)
        return self._opened[index]

    @property
    def num_simulations(self) -> int:
        """Simulations that windows are drawn from."""
        return int(self._first[-1])

    @property
    def epoch(self) -> int:
        """The epoch whose windows these are."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Go on to the windows of `epoch`, not negative.

        Raises:
            ValueError: `epoch` is out of range.
        """
        if not 0 <= epoch < 2**30:
            raise ValueError(f"epoch must be in [0, 2**30), got {epoch}")
        self._epoch.set(epoch)

    def places(self, indices: ArrayLike) -> NDArray[np.int64]:
        """File, simulation in it, and first step of the windows `indices` of this epoch, (num_indices, 3).

        Raises:
            ValueError: `indices` is not a list of integers in [-num_windows, num_windows).
        """
        chosen = indices_of(indices, self.num_windows)
        state = int(splitmix64(int(splitmix64(self.seed, 0)), self.epoch))
        high = splitmix64(state, 2 * chosen[:, None] + np.arange(2)) >> np.uint64(32)
        overall = (high[:, 0] * np.uint64(self.num_simulations) >> np.uint64(32)).astype(np.int64)
        file = np.searchsorted(self._first, overall, side="right") - 1
        start = (high[:, 1] * self._num_starts[file].astype(np.uint64) >> np.uint64(32)).astype(np.int64)
        return np.stack((file, overall - self._first[file], start + self.skip_ms), axis=1)

    def __len__(self) -> int:
        return self.num_windows

    def __getitem__(self, index: int) -> Window:
        x, spikes, soma = self.batch([index_of(index, len(self))])
        return x if isinstance(x, SpikeEvents) else x[0], spikes[0], soma[0]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Window]:
        """The items `indices`, not yet read: `collate` reads them in one go, any other reader gets them one by one."""
        return Items(self, indices)

    def __iter__(self) -> Iterator[Window]:
        return (self[index] for index in range(len(self)))

    def batch(self, indices: ArrayLike) -> Window:
        """The windows `indices` of this epoch as one batch.

        Returns:
            :class:`SpikeEvents` or frames (batch, window, 1278); spikes and soma, (batch, window), float32.

        Raises:
            ValueError: `indices` is not a list of integers in [-num_windows, num_windows).
        """
        places = self.places(indices).tolist()
        spikes = np.zeros((len(places), self.window_ms), dtype=np.float32)
        soma = np.empty((len(places), self.window_ms), dtype=np.float32)
        indptr, channels = [], []
        for i, (file, simulation, start) in enumerate(places):
            source, stop = self._file(file), start + self.window_ms
            rows, channel = source.rows(simulation, start, stop)
            indptr.append(rows)
            channels.append(channel)
            soma[i] = source.soma_mv[simulation, start:stop]
            fired = source.spike_step[source.spike_indptr[simulation] : source.spike_indptr[simulation + 1]] - start
            spikes[i, fired[(fired >= 0) & (fired < self.window_ms)]] = 1.0
        return (
            gather(indptr, channels, self.window_ms, self.output),
            torch.from_numpy(spikes),
            torch.from_numpy(soma_target(soma)),
        )

    @staticmethod
    def collate(items: Sequence[Window]) -> Window:
        """Items put into one batch, as a ``collate_fn``; those that a DataLoader fetched together are one already.

        Raises:
            ValueError: `items` is empty.
        """
        x, spikes, soma = collate(items)
        return x, spikes, soma

    def __repr__(self) -> str:
        shape = f"window_ms={self.window_ms}, skip_ms={self.skip_ms}, output={self.output!r}, seed={self.seed}"
        return f"NeuronIODataset(num_windows={self.num_windows}, num_simulations={self.num_simulations}, {shape})"


def gather(
    indptr: Sequence[NDArray[np.int64]], channels: Sequence[NDArray[np.uint16]], num_steps: int, output: Output
) -> SpikeEvents | Tensor:
    """Rows of several stretches of time, as :meth:`Simulations.rows` gives them, as one batch; shorter ones end in
    silence.

    Returns:
        :class:`SpikeEvents`, or frames (batch, num_steps, 1278): +1 for an excitatory, -1 for an inhibitory spike.
    """
    batch = len(indptr)
    counts = np.zeros((batch, num_steps), dtype=np.int64)
    for i, rows in enumerate(indptr):
        counts[i, : rows.size - 1] = np.diff(rows)
    channel = np.concatenate(channels).astype(np.int64) if channels else np.empty(0, dtype=np.int64)
    if output == "events":
        ends = np.zeros(batch * num_steps + 1, dtype=np.int64)
        np.cumsum(counts.ravel(), out=ends[1:])
        sign = np.where(channel < NUM_SEGMENTS, np.float32(1), np.float32(-1))
        return SpikeEvents(
            torch.from_numpy(ends), torch.from_numpy(channel), torch.from_numpy(sign), (batch, num_steps, NUM_INPUTS)
        )
    frames = np.zeros(batch * num_steps * NUM_INPUTS, dtype=np.int8 if output == "int8" else np.float32)
    cells = np.repeat(np.arange(batch * num_steps) * NUM_INPUTS, counts.ravel()) + channel
    if channel.size and int(channel.max()) >= NUM_INPUTS:
        raise ValueError(f"channels must be below {NUM_INPUTS}, got {int(channel.max())}")
    frames[cells] = 1 - 2 * (channel >= NUM_SEGMENTS).astype(np.int8)
    return torch.from_numpy(frames.reshape(batch, num_steps, NUM_INPUTS))


def split_files(folder: str | os.PathLike[str], suffix: str | None = None) -> dict[str, list[Path]]:
    """Files of each part of the data set, by the names of Kaggle's folders in their paths.

    Args:
        folder: where those folders are, at any depth.
        suffix: ".p" for pickles; None takes converted files of either format.

    Returns:
        The files of "train" (``full_ergodic_train_batch_2`` to ``_10``), "valid" (``_1``) and "test" (``Data_test``),
        in the order of their names; parts of which nothing is there are empty.
    """
    root = Path(folder)
    found: dict[str, list[Path]] = {part: [] for part in SPLITS}
    for path in converted_files(root) if suffix is None else sorted(root.rglob(f"*sim__*{suffix}")):
        folders = set(path.relative_to(root.parent).parts[:-1])
        for part, names in SPLITS.items():
            if folders & set(names) and not path.name.startswith("."):
                found[part].append(path)
    return found
