"""The interface to CUDA: compiling, launching and memory; knows no op."""
