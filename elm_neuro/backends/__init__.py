"""Ways to run the same scan over time: one signature, the same numbers, forward and backward."""

from elm_neuro.backends import alif, elm, network
from elm_neuro.backends._backend import Backend, Operator
from elm_neuro.backends._select import Offer, available, offer, resolve, use
from elm_neuro.backends.alif import ALIFBackend
from elm_neuro.backends.elm import ELMBackend, SpikeRule, scan, spiking_scan
from elm_neuro.backends.network import NetworkBackend, NetworkRecord
from elm_neuro.backends.parts._projection import project
from elm_neuro.backends.parts._untraced import untraced

__all__ = [
    "ALIFBackend",
    "Backend",
    "ELMBackend",
    "NetworkBackend",
    "NetworkRecord",
    "Offer",
    "Operator",
    "SpikeRule",
    "alif",
    "available",
    "elm",
    "network",
    "offer",
    "project",
    "resolve",
    "scan",
    "spiking_scan",
    "untraced",
    "use",
]
