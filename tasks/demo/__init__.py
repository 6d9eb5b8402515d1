"""The model that ships with the project, how it was made, and the demo that runs it."""
