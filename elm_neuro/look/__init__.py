"""Any saved neuron looked at: time constants, what its branches read, its response to one spike, how it works.

:func:`look` writes figures, their numbers and a page; the other functions give the numbers alone. Needs the extra
``train`` for figures, ``data`` for files.
"""

from elm_neuro.look._input import Drive, poisson_drive, read_drive
from elm_neuro.look._look import look
from elm_neuro.look._numbers import Responses, branch_fields, spike_responses, time_constants
from elm_neuro.look._parts import Part, parts_of

__all__ = [
    "Drive",
    "Part",
    "Responses",
    "branch_fields",
    "look",
    "parts_of",
    "poisson_drive",
    "read_drive",
    "spike_responses",
    "time_constants",
]
