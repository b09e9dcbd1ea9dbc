"""Triton bodies, imported only when they are called."""
