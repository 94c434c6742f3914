"""Shells that own parameters: cells and layers of neurons."""

from elm_neuro.functional import ELMState
from elm_neuro.nn._alif import ALIF, LIF
from elm_neuro.nn._cell import ELMCell
from elm_neuro.nn._config import ELMConfig, suggest
from elm_neuro.nn._elm import ELM, BranchELM, ELMTraces, last_output

__all__ = ["ALIF", "ELM", "LIF", "BranchELM", "ELMCell", "ELMConfig", "ELMState", "ELMTraces", "last_output", "suggest"]
