"""Faces of the neurons for other libraries, one file a host: import yours, such as ``elm_neuro.adapters.norse``."""
