"""Neurons on disk and published ones: the package's own folders, the authors' 15 checkpoints by their names, model
cards, and what is pushed to a hub. No file that is read can run code.
"""

from elm_neuro.checkpoints._by_name import from_pretrained
from elm_neuro.checkpoints._cards import cards_page, model_card
from elm_neuro.checkpoints._fetch import UPSTREAM_URL, fetch_upstream
from elm_neuro.checkpoints._published import PublishedNeuron, list_pretrained
from elm_neuro.checkpoints._upstream import NeuronIOPrediction, from_upstream, neuronio_head
from elm_neuro.pretrained import push_to_hub, save_pretrained

__all__ = [
    "UPSTREAM_URL",
    "NeuronIOPrediction",
    "PublishedNeuron",
    "cards_page",
    "fetch_upstream",
    "from_pretrained",
    "from_upstream",
    "list_pretrained",
    "model_card",
    "neuronio_head",
    "push_to_hub",
    "save_pretrained",
]
