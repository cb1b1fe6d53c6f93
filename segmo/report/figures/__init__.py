"""Pictures of plans and of predicted scaling."""
