"""The demonstration and its report: a spiking network with an ELM neuron beside LIF neurons alone. Needs the extra
``train``.
"""

try:
    import lightning as _lightning  # noqa: F401  # before our own files, so that a missing extra is named
except ImportError as error:
    raise ImportError('elm_neuro.demo needs lightning: pip install "elm-neuro[train]"') from error

from elm_neuro.demo._networks import build, data_module
from elm_neuro.demo._report import metrics_of, table_of, verdict, write_figures, write_neuron, write_report
from elm_neuro.demo._run import DemoRun, quiet_trainer, run_demo
from elm_neuro.demo._settings import ADDING_SETTINGS, CONTROL, MIXED, TUNED, DemoSettings, Tuned

__all__ = [
    "ADDING_SETTINGS",
    "CONTROL",
    "MIXED",
    "TUNED",
    "DemoRun",
    "DemoSettings",
    "Tuned",
    "build",
    "data_module",
    "metrics_of",
    "quiet_trainer",
    "run_demo",
    "table_of",
    "verdict",
    "write_figures",
    "write_neuron",
    "write_report",
]
