"""The cost model: how long a part of a prefill takes on a device, and what it moves and keeps."""
