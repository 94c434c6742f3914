"""Made-up spoken digits in the form of SHD, of the synthesiser beside this file: no download.

What it makes is a stand-in: twenty words whose phonemes, speakers and spike statistics are those of speech, made to be
as hard as recorded digits, not recorded digits. An accuracy on it says nothing about the accuracy on SHD.
"""

from __future__ import annotations

import contextlib
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets.hdf5._file import File
from elm_neuro.datasets.shd._files import read_shd, write_shd
from elm_neuro.datasets.shd._recordings import NUM_CLASSES, SpikeRecordings
from elm_neuro.datasets.shd._synthesiser import SPEAKERS, VERSION, utter
from elm_neuro.files import cache_folder, is_there, open_regular

UNSEEN = (4, 5)
SEEN = tuple(speaker for speaker in range(len(SPEAKERS)) if speaker not in UNSEEN)


class SpokenDigits:
    """Seeded samples of twenty spoken digits by twelve made-up speakers, two of whom appear only in the test set.

    Sample ``i`` depends on (`split`, `seed`, ``i``) alone: a larger set begins with the smaller one. Classes come in
    equal numbers. All training samples are by the ten speakers that are not 4 or 5; of the test samples two in three
    are by 4 or 5. The speakers are the same for every seed; the seed draws utterances and spikes. On another machine
    the rounding of floating point may move single spikes.

    `recordings` writes what it made as an SHD-format file in `cache_dir` and reads it from there the next time.

    Args:
        split: "train" or "test".
        num_samples: number of samples, at least 1.
        seed: not negative.
        cache_dir: folder of the files; None is ``elm_neuro/spoken_digits`` in ``$XDG_CACHE_HOME`` or else ``~/.cache``.

    Raises:
        ValueError: an argument is out of range.

    >>> digits = SpokenDigits("test", num_samples=60)
    >>> digits.labels[:20].tolist() == list(range(20)), np.isin(digits.speakers, [4, 5]).mean().round(3).item()
    (True, 0.667)
    >>> times, units = digits.generate(0)
    >>> times.dtype, units.dtype, bool(3000 < times.size < 12000)
    (dtype('int32'), dtype('uint16'), True)
    """

    def __init__(
        self,
        split: Literal["train", "test"],
        num_samples: int = 1440,
        seed: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f'split must be "train" or "test", got {split!r}')
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.split, self.num_samples, self.seed = split, int(num_samples), int(seed)
        # a relative one leads there from other folders too
        self.cache_dir: Path | None = None if cache_dir is None else Path(os.path.abspath(cache_dir))
        if cache_dir is None:
            with contextlib.suppress(RuntimeError):  # no home
                self.cache_dir = cache_folder("spoken_digits")
        block, self.labels = np.divmod(np.arange(self.num_samples), NUM_CLASSES)
        if split == "train":
            self.speakers = np.array(SEEN)[(block + 3 * self.labels) % len(SEEN)]
        else:
            turn, part = np.divmod(block + self.labels, 3)
            self.speakers = np.where(
                part < 2, np.array(UNSEEN)[part % 2], np.array(SEEN)[(turn + 3 * self.labels) % len(SEEN)]
            )

    @property
    def path(self) -> Path | None:
        """The file of these samples, whether it exists or not; None where there is no home to keep it in."""
        return self.cache_dir and self.cache_dir / f"{self.split}-{self.num_samples}-seed{self.seed}-v{VERSION}.h5"

    def generate(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
        """Times in microseconds, ascending, and channels of sample `i`, computed anew.

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= i < self.num_samples:
            raise IndexError(f"i must be in [0, {self.num_samples}), got {i}")
        key = (self.seed, ("train", "test").index(self.split), i)
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
        return utter(int(self.labels[i]), int(self.speakers[i]), rng)

    def recordings(self, progress: Callable[[int, int], None] | None = None) -> SpikeRecordings:
        """All samples, from the file in `cache_dir` where it is whole, else made and written there.

        A file that is damaged or not ours is made again, with a warning; a folder that cannot be written costs a
        warning, too.

        Args:
            progress: called as ``progress(done, num_samples)`` after each sample that is made.
        """
        if (path := self.path) is None:
            warnings.warn("there is no home folder nor cache_dir: the samples are made again next time", stacklevel=2)
            return self._make(progress)
        if is_there(path):
            try:
                return self._read(path)
            except (OSError, ValueError) as error:
                warnings.warn(f"{path} is not a whole cache of these samples and is made again: {error}", stacklevel=2)
        recordings = self._make(progress)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            attributes: dict[str, str | int] = {
                "generator": "elm_neuro spoken digits",
                "version": VERSION,
                "seed": self.seed,
            }
            attributes["checksum"] = _checksum(recordings)
            write_shd(path, recordings, attributes=attributes)
        except OSError as error:
            warnings.warn(
                f"cache_dir cannot be written, so the samples are made again next time: {error}", stacklevel=2
            )
        return recordings

    def _make(self, progress: Callable[[int, int], None] | None) -> SpikeRecordings:
        samples = []
        for i in range(self.num_samples):
            samples.append(self.generate(i))
            if progress is not None:
                progress(i + 1, self.num_samples)
        indptr = np.concatenate(([0], np.cumsum([times.size for times, _ in samples])))
        times, units = (np.concatenate(arrays) for arrays in zip(*samples, strict=True))
        return SpikeRecordings(times, units, indptr, self.labels, self.speakers)

    def _read(self, path: Path) -> SpikeRecordings:
        recordings = read_shd(path)
        with open_regular(path) as file:
            expected = File(file).attribute("checksum")
        if len(recordings) != self.num_samples or expected != _checksum(recordings):
            raise ValueError(
                f"checksum must be that of {self.num_samples} samples, got {expected} for {len(recordings)}"
            )
        return recordings

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return (
            f"SpokenDigits({self.split!r}, num_samples={self.num_samples}, seed={self.seed}, "
            f"cache_dir={self.cache_dir and str(self.cache_dir)!r})"
        )


def _checksum(recordings: SpikeRecordings) -> int:
    value = 0
    for array in (recordings.times, recordings.units, recordings.indptr, recordings.labels, recordings.speakers):
        value = zlib.crc32(np.ascontiguousarray(array).tobytes(), value)
    return value
