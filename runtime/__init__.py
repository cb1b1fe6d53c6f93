"""What a rewritten graph calls: operators on tensors. Nothing here ever sees an ``fx.Graph``."""
