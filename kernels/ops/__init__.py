"""The ops on CUDA: one module an op family, each launching what `kernels/cuda` has in the folder of its name."""
