"""SegMo inside other projects' programs."""
