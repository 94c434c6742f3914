"""The ELM's scan over time, a backend a file."""
