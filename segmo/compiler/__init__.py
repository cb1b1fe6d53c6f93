"""From Dynamo's graph to a callable: the backend, how Dynamo is set up for it, and the start of a program on ranks."""

from segmo.compat.versions import check_versions

check_versions()  # before anything here imports what an older torch does not have
