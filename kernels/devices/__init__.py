"""What an engine opens: the CPU, a GPU, or a GPU that is only planned."""
