"""Spike recordings in files and made up: SHD-format data sets and the synthetic spoken digits. Needs the extra ``data``."""

from elm_neuro.datasets._binned import SHDDataset
from elm_neuro.datasets._recordings import SpikeRecordings, split_speakers, unseen_speakers
from elm_neuro.datasets._shd import read_shd, write_shd
from elm_neuro.datasets._spoken_digits import SpokenDigits

__all__ = ["SHDDataset", "SpikeRecordings", "SpokenDigits", "read_shd", "split_speakers", "unseen_speakers", "write_shd"]
