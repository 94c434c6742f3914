"""Training on N-MNIST."""
