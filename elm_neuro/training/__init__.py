"""Lightning modules, data modules and recipes that train networks of these neurons. Needs the extra ``train``."""

try:
    import lightning as _lightning  # noqa: F401  # before our own files, so that a missing extra is named
    import torchmetrics as _torchmetrics  # noqa: F401
except ImportError as error:
    raise ImportError('elm_neuro.training needs lightning: pip install "elm-neuro[train]"') from error

from elm_neuro.training._adding import SHDAddingDataModule
from elm_neuro.training._baselines import LSTMClassifier, RecurrentLIFClassifier
from elm_neuro.training._data import Binning, SHDDataModule, SpokenDigitsDataModule
from elm_neuro.training._evaluation import Interval, TestReport, seed_interval
from elm_neuro.training._models import LeakyReadout, LIFNetwork, SequenceClassifier, SpikingNetwork, num_parameters
from elm_neuro.training._module import SpikeClassification, drop_input
from elm_neuro.training._predictions import PredictionWriter

__all__ = [
    "Binning",
    "Interval",
    "LIFNetwork",
    "LSTMClassifier",
    "LeakyReadout",
    "PredictionWriter",
    "RecurrentLIFClassifier",
    "SHDAddingDataModule",
    "SHDDataModule",
    "SequenceClassifier",
    "SpikeClassification",
    "SpikingNetwork",
    "SpokenDigitsDataModule",
    "TestReport",
    "drop_input",
    "num_parameters",
    "seed_interval",
]
