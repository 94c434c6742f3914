"""NeuronIO: simulations of a layer 5 pyramidal cell."""
