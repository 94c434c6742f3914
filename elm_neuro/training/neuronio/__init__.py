"""Training and evaluation on NeuronIO."""
