"""CUDA C++ kernels: their sources, the shapes they are compiled for, their compilation at first use, and their launch."""
