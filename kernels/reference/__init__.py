"""The NumPy twin of every op: the oracle of the CUDA kernels and the whole of the CPU device."""
