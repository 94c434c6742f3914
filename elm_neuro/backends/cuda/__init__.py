"""CUDA C++ kernels: sources, the shapes they are compiled for, their compilation at first use, and their launch."""
