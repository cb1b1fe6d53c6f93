"""Graph to graph. Knows ``torch.fx``, never calls a kernel."""
