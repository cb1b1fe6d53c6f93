"""Segment attention, selection and the KV cache over the ranks of a process group."""
