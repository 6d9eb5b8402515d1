"""The model that ships with the project, the demo that runs it and, in `training`, how it was made."""
