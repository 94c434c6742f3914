"""Ways to run the same scan over time: one signature, the same numbers, forward and backward."""

from elm_neuro.backends._select import available, resolve, scan, use
from elm_neuro.backends.parts._projection import project
from elm_neuro.backends.parts._untraced import untraced

__all__ = ["available", "project", "resolve", "scan", "untraced", "use"]
