"""What every op means, in NumPy; a row's result never depends on the other rows of a call."""
