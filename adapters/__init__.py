"""Faces of the neurons for other libraries, one file a host: import the one you use, such as
``elm_neuro.adapters.norse``.

A face of a network takes any layer that keeps the protocol :class:`elm_neuro.nn.Layer` and has it as `core`:
``Cell(core)`` is one step and ``Layer(core)`` whole sequences; for spikingjelly ``Layer(core, step_mode=...)`` is both.
``elm_neuro.adapters.nir`` describes networks with such layers as NIR graphs.
"""
