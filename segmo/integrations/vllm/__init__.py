"""SegMo's token selection (CAS) inside vLLM: a plugin that vLLM finds through its entry points."""
