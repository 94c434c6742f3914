"""Spike recordings in files and made up: SHD, SHD-Adding, NeuronIO, transforms of events, synthetic spoken digits. Needs the extra ``data``."""

from elm_neuro.datasets._adding import SHDAdding
from elm_neuro.datasets._binned import SHDDataset
from elm_neuro.datasets._neuronio import Simulations, read_simulation_file, soma_target
from elm_neuro.datasets._neuronio_convert import convert_neuronio, read_manifest, simulation_files, verify_neuronio
from elm_neuro.datasets._neuronio_store import open_simulations
from elm_neuro.datasets._neuronio_windows import NeuronIODataset, split_files
from elm_neuro.datasets._pairs import add_labels, fingerprint, fixed_pairs, rank_speakers, splitmix64, upstream_pairs, upstream_split
from elm_neuro.datasets._protocols import FixedPairing, UpstreamPairing
from elm_neuro.datasets._random import sample_key
from elm_neuro.datasets._rasters import InputDropout, ToRaster
from elm_neuro.datasets._recordings import SpikeRecordings, split_speakers, unseen_speakers
from elm_neuro.datasets._shd import read_shd, write_shd
from elm_neuro.datasets._spoken_digits import SpokenDigits
from elm_neuro.datasets._transforms import ChannelDrop, ChannelJitter, EventDrop, PoolChannels, TimeJitter, TimeWarp

__all__ = [
    "ChannelDrop",
    "ChannelJitter",
    "EventDrop",
    "FixedPairing",
    "InputDropout",
    "NeuronIODataset",
    "PoolChannels",
    "SHDAdding",
    "SHDDataset",
    "Simulations",
    "SpikeRecordings",
    "SpokenDigits",
    "TimeJitter",
    "TimeWarp",
    "ToRaster",
    "UpstreamPairing",
    "add_labels",
    "convert_neuronio",
    "fingerprint",
    "fixed_pairs",
    "open_simulations",
    "rank_speakers",
    "read_manifest",
    "read_shd",
    "read_simulation_file",
    "sample_key",
    "simulation_files",
    "soma_target",
    "split_files",
    "split_speakers",
    "splitmix64",
    "unseen_speakers",
    "upstream_pairs",
    "upstream_split",
    "verify_neuronio",
    "write_shd",
]
