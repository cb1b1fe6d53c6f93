"""``python -m segmo``."""

from segmo.cli import main

main()
