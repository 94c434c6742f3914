"""The target of NeuronIO's soma: (min(V, -55 mV) + 67.7 mV) / 10, upstream ``neuronio_data_utils.py`` at 52e68a6."""

from __future__ import annotations

SOMA_CAP_MV = -55.0  # spikes are cut off here
SOMA_BIAS_MV = -67.7
SOMA_SCALE_MV = 10.0
