"""Spreading the segments of a prefill over ranks so that all finish together."""
