"""Triton kernels that are generated for the shapes, dtypes and hardware at hand.

A frozen spec and a template give source text (:mod:`segmo.runtime.kernels.render`); the text is stored on
disk under its own hash and loaded from there, because Triton reads a kernel's source from its file.
"""
