"""Ways to run the same scan over time: one signature, the same numbers, forward and backward."""

from typing import TYPE_CHECKING

from elm_neuro._later import imported_later
from elm_neuro.backends import elm
from elm_neuro.backends._backend import Backend, Operator
from elm_neuro.backends._select import Offer, available, offer, register_later, resolve, use
from elm_neuro.backends.elm import ELMBackend, SpikeRule, scan, spiking_scan
from elm_neuro.backends.parts._projection import project
from elm_neuro.backends.parts._untraced import untraced

if TYPE_CHECKING:
    from elm_neuro.backends import alif, network
    from elm_neuro.backends.alif import ALIFBackend
    from elm_neuro.backends.network import NetworkBackend, NetworkRecord

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

# An ELM needs neither of these operators: each is imported with a layer that does, or when it is asked for.
_ALIF, _NETWORK = "elm_neuro.backends.alif", "elm_neuro.backends.network"
register_later("alif", _ALIF)
register_later("network", _NETWORK)
if not TYPE_CHECKING:
    __getattr__, __dir__ = imported_later(
        __name__,
        {
            "alif": _ALIF,
            "ALIFBackend": _ALIF,
            "network": _NETWORK,
            "NetworkBackend": _NETWORK,
            "NetworkRecord": _NETWORK,
        },
    )
