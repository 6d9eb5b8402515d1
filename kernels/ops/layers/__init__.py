"""Ops of which only some kinds of layers are made."""
