"""The compiled library of the CPU and what is handed to it."""
