"""How CUDA is spoken to: compiling, launching and memory; knows no op."""
