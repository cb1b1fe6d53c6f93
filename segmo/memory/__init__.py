"""A video that is watched once: its keys and values, of which each question takes those that it is about."""
