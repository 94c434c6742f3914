"""The neurons that their authors published: what is known of each, from one file of data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

DATA_FILE = "published.json"


@dataclass(frozen=True)
class Training:
    """How a published neuron was trained, from the ``train_config.json`` beside it; windows of 500 ms."""

    epochs: int
    batches_per_epoch: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class TestScores:
    """What its authors measured on NeuronIO's test set, from the ``eval_results.json`` beside it.

    Windows of 500 ms with a burn-in of 150 ms, the voltage aligned to the truth: not what a neuron says by itself,
    which ``elm-neuro neuronio eval`` prints beside it.
    """

    __test__ = False  # no test of pytest's

    auc: float
    true_positives_at_0_25_percent: float  # share of the spikes found at 0.25 % false positives
    true_positives_at_1_percent: float
    soma_rmse_mv: float
    soma_mae_mv: float
    soma_explained_variance_percent: float


@dataclass(frozen=True)
class PublishedNeuron:
    """A neuron of the authors' repository: a Branch-ELM (v1) of 45 branches with 100 synapses each, for NeuronIO.

    ``checkpoints.from_pretrained(name)`` loads it.
    """

    name: str
    num_memory: int
    activation: str  # of the MLP
    num_parameters: int  # trained ones
    weights_bytes: int
    config_sha256: str
    weights_sha256: str
    training: Training
    test: TestScores
    repository: str  # on GitHub
    revision: str  # commit of it
    licence: str
    copyright: str
    paper: str

    @property
    def files_url(self) -> str:
        """Where its two files are downloaded from."""
        return f"https://raw.githubusercontent.com/{self.repository}/{self.revision}/models/{self.name}"

    @property
    def page_url(self) -> str:
        """Its folder in the authors' repository, at the commit."""
        return f"https://github.com/{self.repository}/tree/{self.revision}/models/{self.name}"


@cache
def list_pretrained() -> tuple[PublishedNeuron, ...]:
    """Every published neuron: names, sizes, scores, checksums and where they come from; nothing is downloaded.

    >>> [neuron.name for neuron in list_pretrained() if neuron.test.auc > 0.994]
    ['best_elm_neuron']
    """
    data: dict[str, Any] = json.loads((files("elm_neuro.checkpoints") / DATA_FILE).read_text(encoding="utf-8"))
    return tuple(
        PublishedNeuron(
            **{
                **neuron,
                "training": Training(**neuron["training"]),
                "test": TestScores(**neuron["test"]),
                **{name: value for name, value in data.items() if name != "neurons"},
            }
        )
        for neuron in data["neurons"]
    )


def published(name: str) -> PublishedNeuron:
    """The published neuron of that name.

    Raises:
        ValueError: there is none.

    >>> published("num_memory_20").num_parameters
    8002
    """
    for neuron in list_pretrained():
        if neuron.name == name:
            return neuron
    raise ValueError(f"name must be one of {', '.join(one.name for one in list_pretrained())}, got {name!r}")
