"""Neurons on disk: the package's own folders, and the authors' published checkpoints. No file that is read can run
code.
"""

from elm_neuro.checkpoints._fetch import UPSTREAM_URL, fetch_upstream
from elm_neuro.checkpoints._upstream import NeuronIOPrediction, from_upstream, neuronio_head
from elm_neuro.pretrained import from_pretrained, save_pretrained

__all__ = [
    "UPSTREAM_URL",
    "NeuronIOPrediction",
    "fetch_upstream",
    "from_pretrained",
    "from_upstream",
    "neuronio_head",
    "save_pretrained",
]
