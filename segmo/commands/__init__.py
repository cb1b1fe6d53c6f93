"""The commands of the ``segmo`` program, one file each. Heavy imports stand inside the functions."""
