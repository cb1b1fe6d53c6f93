"""What users and tasks hand to the model ``segmo`` of lmms-eval: model arguments, stops, settings of a family."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from segmo.errors import OptionError
from segmo.options import Options
from segmo.passes.pipeline import build_pipeline

IGNORED = ("max_batch_size", "device_map", "use_cache")  # what lmms-eval passes to every model, or users are used to
SEPARATOR = "\n\n"  # between the examples of a prompt; lmms-eval's default stop

# Names under which tasks of lmms-eval keep settings for a family, where they are not its ``model_type``.
_NAMES = {
    "llava_onevision": ("llava_hf",),
    "llava_next_video": ("llava_vid", "llava_hf"),
    "internvl": ("internvl_hf", "internvl3_5", "internvl3", "internvl2"),
    "glm46v": ("glm4v",),
    "lfm3_vl": ("lfm2_5_vl",),
    "minicpmv4_6": ("minicpm_v",),
    "minicpmv4_7": ("minicpm_v",),
    "perception_lm": ("plm",),
    "video_llama_3": ("videollama3",),
}
_PARTS = ("_thinker", "_moe")  # of a model_type, which lmms-eval's names leave out


def parse_options(given: Mapping[str, Any]) -> Options:
    """SegMo's options from model arguments.

    ``keep=1`` without more is the baseline, the model as it is: then ``segments`` is 1 unless it is given too.
    lmms-eval hands on texts as they stand on the command line: quotes around them go, and ``disable`` takes several
    names as ``disable="trim-last-layer,reuse-buffers"``.

    Raises:
        OptionError, PipelineError: an unknown option or pass, or a wrong value.
    """
    options = {name: unquoted(value) for name, value in given.items() if name not in IGNORED}
    if isinstance(options.get("disable"), str):
        names = options["disable"].strip("[]").split(",")
        options["disable"] = tuple(unquoted(name.strip()) for name in names if name.strip())
    if isinstance(options.get("pipeline"), str):
        options["pipeline"] = options["pipeline"].strip().removeprefix("[").removesuffix("]")
    if options.get("keep") == 1 and options.get("frames", 1) == 1:
        options.setdefault("segments", 1)
    found = Options.parse(options)
    build_pipeline(found)  # a wrong name of a pass is an error now, and not in the first prompt
    return found


def unquoted(value: Any) -> Any:
    """A value without the quotes that lmms-eval leaves around it."""
    if isinstance(value, str) and len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value


def truth(name: str, value: Any) -> bool:
    """An argument that is true or false.

    Raises:
        OptionError: it is neither.
    """
    if isinstance(value, bool):
        return value
    raise OptionError(f"{name}={value!r} must be True or False")


def generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate`` from a task's generation settings; greedy unless a temperature is set."""
    found: dict[str, Any] = {"max_new_tokens": int(settings.get("max_new_tokens", 128)), "do_sample": False}
    if (settings.get("temperature") or 0) > 0:
        found.update(do_sample=True, temperature=settings["temperature"], top_p=settings.get("top_p"))
    if (settings.get("num_beams") or 1) > 1:
        found["num_beams"] = settings["num_beams"]
    return found


def stopped(text: str, until: Any) -> str:
    """An answer up to a task's first stop.

    The separator of examples is no stop here, as it is none for lmms-eval's own Qwen-VL models: an answer may have
    several paragraphs.
    """
    stops = [until] if isinstance(until, str) else list(until or [])
    for stop in stops:
        if stop and stop != SEPARATOR:
            text = text.split(stop)[0]
    return text


def family_names(model_type: str) -> tuple[str, ...]:
    """Names under which a task may keep settings for a family, the best first."""
    types = [model_type]
    for part in _PARTS:
        types.append(types[-1].removesuffix(part))
    names = dict.fromkeys(["segmo", *types, *(name for each in types for name in _NAMES.get(each, ()))])
    return tuple(each for name in names for each in (name, f"{name}_chat"))


def of_family(settings: Any, names: tuple[str, ...]) -> dict[str, Any] | None:
    """What a task sets for a family; None where it sets nothing for it."""
    if not isinstance(settings, Mapping):
        return None
    return next((dict(settings[name]) for name in names if isinstance(settings.get(name), Mapping)), None)


def takes_rounds(to_messages: Callable[..., Any]) -> bool:
    """Whether a task can be asked for a further round: what writes its prompts takes the round's number.

    lmms-eval's method of a task always does, and asks the same for ever where the task's own function does not.
    """
    config = getattr(getattr(to_messages, "__self__", None), "config", None)
    if config is not None:
        to_messages = config.doc_to_messages or config.doc_to_text
    if not callable(to_messages):
        return False
    parameters = inspect.signature(to_messages).parameters
    return "round_idx" in parameters or any(each.kind == each.VAR_KEYWORD for each in parameters.values())
