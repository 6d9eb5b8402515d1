"""Fault tests: real workers, Redis servers and clients, and all that may go wrong between them, staged by a seed.

``python -m tests.chaos`` (``make chaos``) runs them and prints a table.
"""
