"""Spike recordings in files and made up: SHD, SHD-Adding, N-MNIST, NeuronIO, single neurons under a current, enwik8,
transforms of events, synthetic spoken digits. Needs the extra ``data``.
"""

from elm_neuro.datasets._counter import splitmix64
from elm_neuro.datasets.enwik8._file import alphabet, read_enwik8, split_text
from elm_neuro.datasets.enwik8._streams import TextStreams, TextStretch
from elm_neuro.datasets.ephys._made import KnownNeuron, make_ephys, write_sweeps
from elm_neuro.datasets.ephys._nwb import Sweep, read_sweeps
from elm_neuro.datasets.ephys._trains import SpikeTrains, cut_sweeps
from elm_neuro.datasets.neuronio._convert import convert_neuronio, read_manifest, simulation_files, verify_neuronio
from elm_neuro.datasets.neuronio._simulations import Simulations, read_simulation_file, soma_target
from elm_neuro.datasets.neuronio._store import open_simulations
from elm_neuro.datasets.neuronio._windows import NeuronIODataset, split_files
from elm_neuro.datasets.nmnist._files import read_nmnist, read_nmnist_file, write_nmnist_file
from elm_neuro.datasets.nmnist._made import make_nmnist
from elm_neuro.datasets.shd._adding import SHDAdding
from elm_neuro.datasets.shd._binned import SHDDataset
from elm_neuro.datasets.shd._files import read_shd, write_shd
from elm_neuro.datasets.shd._pairs import (
    add_labels,
    fingerprint,
    fixed_pairs,
    rank_speakers,
    upstream_pairs,
    upstream_split,
)
from elm_neuro.datasets.shd._protocols import FixedPairing, UpstreamPairing
from elm_neuro.datasets.shd._recordings import SHD_WORDS, SpikeRecordings, split_speakers, unseen_speakers
from elm_neuro.datasets.shd._spoken_digits import SpokenDigits
from elm_neuro.datasets.transforms._augment import (
    ChannelDrop,
    ChannelJitter,
    EventDrop,
    PoolChannels,
    TimeJitter,
    TimeWarp,
)
from elm_neuro.datasets.transforms._random import sample_key
from elm_neuro.datasets.transforms._rasters import InputDropout, ToRaster

__all__ = [
    "SHD_WORDS",
    "ChannelDrop",
    "ChannelJitter",
    "EventDrop",
    "FixedPairing",
    "InputDropout",
    "KnownNeuron",
    "NeuronIODataset",
    "PoolChannels",
    "SHDAdding",
    "SHDDataset",
    "Simulations",
    "SpikeRecordings",
    "SpikeTrains",
    "SpokenDigits",
    "Sweep",
    "TextStreams",
    "TextStretch",
    "TimeJitter",
    "TimeWarp",
    "ToRaster",
    "UpstreamPairing",
    "add_labels",
    "alphabet",
    "convert_neuronio",
    "cut_sweeps",
    "fingerprint",
    "fixed_pairs",
    "make_ephys",
    "make_nmnist",
    "open_simulations",
    "rank_speakers",
    "read_enwik8",
    "read_manifest",
    "read_nmnist",
    "read_nmnist_file",
    "read_shd",
    "read_simulation_file",
    "read_sweeps",
    "sample_key",
    "simulation_files",
    "soma_target",
    "split_files",
    "split_speakers",
    "split_text",
    "splitmix64",
    "unseen_speakers",
    "upstream_pairs",
    "upstream_split",
    "verify_neuronio",
    "write_nmnist_file",
    "write_shd",
    "write_sweeps",
]
