"""A small model file of every family, with what llama.cpp computes from it, and the scripts that made both."""
