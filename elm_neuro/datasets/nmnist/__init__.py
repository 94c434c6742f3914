"""N-MNIST: handwritten digits seen by a camera that reports changes of brightness."""
