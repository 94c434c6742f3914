"""Faces of the neurons for other libraries, one file a host: import the one you use, such as
``elm_neuro.adapters.norse``.

The faces of networks have the same two verbs in each: ``Cell(core)`` is one step and ``Layer(core)`` whole sequences of
any layer that keeps the protocol :class:`elm_neuro.nn.Layer`; the face keeps it as `core`.
"""
