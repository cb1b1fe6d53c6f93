"""Frames before the vision encoder: which of them the question is about, and encoding no others."""
