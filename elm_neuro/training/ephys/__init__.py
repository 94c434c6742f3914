"""Neurons fitted to recordings of single neurons."""
