"""From Dynamo's graph to a callable: the backend, how Dynamo is set up for it, and the start of a program on ranks."""
