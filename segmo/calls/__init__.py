"""What stands around the compiled graph of a model: whichever way it was compiled, whoever calls it."""

import segmo.compiler  # noqa: F401  # refuses a torch or transformers that is too old, before anything leans on it
