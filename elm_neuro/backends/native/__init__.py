"""The library of native kernels for the CPU and what is handed to it."""
