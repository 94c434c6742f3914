"""Lightning modules, data modules and recipes that train networks of these neurons. Needs the extra ``train``."""

try:
    import lightning as _lightning  # noqa: F401  # before our own files, so that a missing extra is named
    import torchmetrics as _torchmetrics  # noqa: F401
except ImportError as error:
    raise ImportError('elm_neuro.training needs lightning: pip install "elm-neuro[train]"') from error

from elm_neuro.training.enwik8._data import TextStreamDataModule
from elm_neuro.training.enwik8._module import ByteModel
from elm_neuro.training.ephys._figures import spike_trains_beside
from elm_neuro.training.ephys._fit import NeuronFit, fit_neuron
from elm_neuro.training.ephys._metrics import explained_temporal_variance
from elm_neuro.training.loop._quiet import quiet
from elm_neuro.training.lra._budget import TimeBudget
from elm_neuro.training.lra._data import TokenDataModule
from elm_neuro.training.lra._module import TokenClassification
from elm_neuro.training.lra._report import TokenReport
from elm_neuro.training.lra._tasks import (
    ImageDataModule,
    ListOpsDataModule,
    PathfinderDataModule,
    RetrievalDataModule,
    SequentialDigitsDataModule,
    TextDataModule,
)
from elm_neuro.training.networks._alif import ALIFNetwork
from elm_neuro.training.networks._baselines import LSTMClassifier, RecurrentLIFClassifier
from elm_neuro.training.networks._classifiers import (
    LeakyReadout,
    LIFNetwork,
    SequenceClassifier,
    SpikingNetwork,
    num_parameters,
)
from elm_neuro.training.networks._stack import ResidualStack
from elm_neuro.training.networks._tokens import NormalisedReadout, TokenClassifier, TokenLSTM, TwoTowers
from elm_neuro.training.neuronio._data import NeuronIODataModule
from elm_neuro.training.neuronio._evaluation import Protocols, Windows, predict_protocols, summarise_protocols
from elm_neuro.training.neuronio._evaluation import evaluate as evaluate_neuronio
from elm_neuro.training.neuronio._evaluation import predict as predict_neuronio
from elm_neuro.training.neuronio._figures import (
    evaluation_figures,
    neuronio_ablation,
    neuronio_workings,
    receptive_fields,
    roc_curves,
)
from elm_neuro.training.neuronio._metrics import Prediction
from elm_neuro.training.neuronio._module import NeuronIOLoss, NeuronIORegression, neuronio_loss
from elm_neuro.training.neuronio._networks import LIFRegression, LSTMRegression, flops_per_step, linear_elm
from elm_neuro.training.neuronio._tables import SaveNeuron, evaluation_remarks, evaluation_table
from elm_neuro.training.nmnist._data import NMNISTDataModule
from elm_neuro.training.shd._adding import SHDAddingDataModule
from elm_neuro.training.shd._data import Binning, SHDDataModule, SpokenDigitsDataModule
from elm_neuro.training.shd._module import SpikeClassification, drop_input
from elm_neuro.training.shd._predictions import PredictionWriter
from elm_neuro.training.shd._report import Interval, TestReport, seed_interval

__all__ = [
    "ALIFNetwork",
    "Binning",
    "ByteModel",
    "ImageDataModule",
    "Interval",
    "LIFNetwork",
    "LIFRegression",
    "LSTMClassifier",
    "LSTMRegression",
    "LeakyReadout",
    "ListOpsDataModule",
    "NMNISTDataModule",
    "NeuronFit",
    "NeuronIODataModule",
    "NeuronIOLoss",
    "NeuronIORegression",
    "NormalisedReadout",
    "PathfinderDataModule",
    "Prediction",
    "PredictionWriter",
    "Protocols",
    "RecurrentLIFClassifier",
    "ResidualStack",
    "RetrievalDataModule",
    "SHDAddingDataModule",
    "SHDDataModule",
    "SaveNeuron",
    "SequenceClassifier",
    "SequentialDigitsDataModule",
    "SpikeClassification",
    "SpikingNetwork",
    "SpokenDigitsDataModule",
    "TestReport",
    "TextDataModule",
    "TextStreamDataModule",
    "TimeBudget",
    "TokenClassification",
    "TokenClassifier",
    "TokenDataModule",
    "TokenLSTM",
    "TokenReport",
    "TwoTowers",
    "Windows",
    "drop_input",
    "evaluate_neuronio",
    "evaluation_figures",
    "evaluation_remarks",
    "evaluation_table",
    "explained_temporal_variance",
    "fit_neuron",
    "flops_per_step",
    "linear_elm",
    "neuronio_ablation",
    "neuronio_loss",
    "neuronio_workings",
    "num_parameters",
    "predict_neuronio",
    "predict_protocols",
    "quiet",
    "receptive_fields",
    "roc_curves",
    "seed_interval",
    "spike_trains_beside",
    "summarise_protocols",
]
