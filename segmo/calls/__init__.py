"""What stands around the compiled graph of a model: whichever way it was compiled, whoever calls it."""
