"""Errors that SegMo raises. Each message says what was wrong, where, and what to do."""

from __future__ import annotations


class SegMoError(RuntimeError):
    """Base of all errors raised by SegMo."""


class VersionError(SegMoError):
    """torch or transformers is older than SegMo works with."""


class OptionError(SegMoError, ValueError):
    """An option has an unknown name, a wrong type, or a value outside its range."""


class PipelineError(SegMoError, ValueError):
    """A pipeline names an unknown pass or an unknown field of a pass."""


class NotRewrittenError(SegMoError):
    """Raised under ``strict=True`` when a pass did not apply to a prefill graph."""


class CompileError(SegMoError):
    """A pass or a lowering failed. SegMo never falls back to the unmodified model after such a failure."""


class PromptError(SegMoError, ValueError):
    """The prompt handed to a rewritten graph cannot be handled, for example rows with unequal videos."""


class PlanError(SegMoError, ValueError):
    """Segments cannot be spread over the ranks as asked: memory, sizes or an unknown device."""


class MemoryPlanError(PlanError):
    """Segments cannot be spread over the ranks for want of memory."""


class RankError(SegMoError):
    """Ranks disagree, or one of them died or hung. The message names the rank and the step."""


class KernelError(SegMoError, ValueError):
    """A kernel cannot be generated, compiled or launched for this shape, dtype or device."""


class CacheError(SegMoError, ValueError):
    """A KV cache cannot do what is asked of it after tokens were dropped, or is of a kind that cannot be cut."""


# What a processor of transformers raises of inputs that it cannot take: in its own words, or out of a reshape.
REFUSALS = (ValueError, RuntimeError, ArithmeticError)


def in_one_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says, 200 characters at most; a compiler's go on for pages."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {said}"[:200].removesuffix(": ")
