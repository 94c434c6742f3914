"""HDF5 files of strangers, read by ourselves: on a damaged file libhdf5 may crash, never return, or take all memory."""
