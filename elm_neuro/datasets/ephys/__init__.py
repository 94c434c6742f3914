"""Recordings of single neurons that were driven by a current."""
