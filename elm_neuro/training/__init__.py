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
from elm_neuro.training._neuronio import NeuronIOLoss, NeuronIORegression, neuronio_loss
from elm_neuro.training._neuronio_data import NeuronIODataModule
from elm_neuro.training._neuronio_evaluation import Windows
from elm_neuro.training._neuronio_evaluation import evaluate as evaluate_neuronio
from elm_neuro.training._neuronio_evaluation import predict as predict_neuronio
from elm_neuro.training._neuronio_figures import neuronio_ablation, neuronio_workings, receptive_fields, roc_curves
from elm_neuro.training._neuronio_metrics import Prediction
from elm_neuro.training._neuronio_models import LIFRegression, LSTMRegression, flops_per_step, linear_elm
from elm_neuro.training._neuronio_report import SaveNeuron
from elm_neuro.training._predictions import PredictionWriter

__all__ = [
    "Binning",
    "Interval",
    "LIFNetwork",
    "LIFRegression",
    "LSTMClassifier",
    "LSTMRegression",
    "LeakyReadout",
    "NeuronIODataModule",
    "NeuronIOLoss",
    "NeuronIORegression",
    "Prediction",
    "PredictionWriter",
    "RecurrentLIFClassifier",
    "SHDAddingDataModule",
    "SHDDataModule",
    "SaveNeuron",
    "SequenceClassifier",
    "SpikeClassification",
    "SpikingNetwork",
    "SpokenDigitsDataModule",
    "TestReport",
    "Windows",
    "drop_input",
    "evaluate_neuronio",
    "flops_per_step",
    "linear_elm",
    "neuronio_ablation",
    "neuronio_loss",
    "neuronio_workings",
    "num_parameters",
    "predict_neuronio",
    "receptive_fields",
    "roc_curves",
    "seed_interval",
]
