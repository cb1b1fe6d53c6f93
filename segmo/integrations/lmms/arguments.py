"""What users and tasks hand to the model ``segmo`` of lmms-eval: model arguments, stops, settings of a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segmo.errors import OptionError
from segmo.options import Options

IGNORED = ("max_batch_size", "device_map", "use_cache")  # what lmms-eval passes to every model, or users are used to
SEPARATOR = "\n\n"  # between the examples of a prompt; lmms-eval's default stop

# Names under which tasks of lmms-eval keep settings for a family, where they are not its ``model_type``.
_NAMES = {
    "llava_onevision": ("llava_hf",),
    "llava_next_video": ("llava_vid", "llava_hf"),
    "internvl": ("internvl_hf", "internvl3"),
}


def parse_options(given: Mapping[str, Any]) -> Options:
    """SegMo's options from model arguments.

    ``keep=1`` without more is the baseline, the model as it is: then ``segments`` is 1 unless it is given too.
    lmms-eval hands on texts as they stand on the command line: quotes around them go, and ``disable`` takes several
    names as ``disable="trim-last-layer,reuse-buffers"``.

    Raises:
        OptionError: an unknown option, or a wrong value.
    """
    options = {name: _unquoted(value) for name, value in given.items() if name not in IGNORED}
    if isinstance(options.get("disable"), str):
        names = options["disable"].strip("[]").split(",")
        options["disable"] = tuple(_unquoted(name.strip()) for name in names if name.strip())
    if options.get("keep") == 1 and options.get("frames", 1) == 1:
        options.setdefault("segments", 1)
    return Options.parse(options)


def _unquoted(value: Any) -> Any:
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
    plain = model_type.removesuffix("_moe")
    names = dict.fromkeys(["segmo", model_type, plain, *_NAMES.get(model_type, ()), *_NAMES.get(plain, ())])
    return tuple(each for name in names for each in (name, f"{name}_chat"))


def of_family(settings: Any, names: tuple[str, ...]) -> dict[str, Any] | None:
    """What a task sets for a family; None where it sets nothing for it."""
    if not isinstance(settings, Mapping):
        return None
    return next((dict(settings[name]) for name in names if isinstance(settings.get(name), Mapping)), None)
