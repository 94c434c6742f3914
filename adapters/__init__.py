"""Faces of the neurons for other libraries, one file a host: import the one you use, such as ``elm_neuro.adapters.norse``."""
