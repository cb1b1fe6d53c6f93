"""Everything that leans on the inside of torch or transformers, one small file per thing.

A file here states ``WHAT`` it leans on and for which ``VERSIONS`` that was tried, does its one thing in functions of
its own, and has ``fits() -> str | None``: a probe that answers None where the packages still are as this file knows
them, and otherwise says what is different. :mod:`segmo.compat.parts` lists the files; its test runs every probe, and
``segmo doctor`` shows them.

This is ground: nothing here imports anything of SegMo but its errors.
"""
