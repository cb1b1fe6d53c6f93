"""Implementations of segment attention. All equal :mod:`segmo.runtime.attention.reference` to rounding."""
