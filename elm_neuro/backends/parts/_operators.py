"""The operators of torch's that the package declares, for torch.compile and torch.export, who do not look into them.

They are declared with the package, since a program that was saved asks for them by name; what runs them is imported
when one runs. ``torch.library.custom_op`` does the same, but takes 2 ms of every import for each.
"""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("elm_neuro", "FRAGMENT")
