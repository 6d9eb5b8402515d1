"""How the results and errors of a batch are written."""
