"""The chat model ``segmo`` of lmms-eval: any Video LLM that SegMo knows, with SegMo's options as model arguments.

This module needs lmms-eval (``pip install 'segmo[lmms]'``); only lmms-eval imports it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from rich.progress import track

import segmo
from segmo.errors import OptionError
from segmo.integrations.lmms.prompts import Sampling, chat_inputs
from segmo.options import Options

IGNORED = ("max_batch_size", "device_map", "use_cache")  # what lmms-eval passes to every model, or users are used to


def parse_options(given: dict[str, Any]) -> Options:
    """SegMo's options from model arguments.

    ``keep=1`` without more is the baseline, the model as it is: then ``segments`` is 1 unless it is given too.

    Raises:
        OptionError: an unknown option, or a wrong value.
    """
    options = {name: value for name, value in given.items() if name not in IGNORED}
    if options.get("keep") == 1 and options.get("frames", 1) == 1:
        options.setdefault("segments", 1)
    return Options.parse(options)


class SegmoChat(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """A Video LLM that is compiled by SegMo.

    Args:
        pretrained: folder (or name) of a model of a known family, with its processor.
        device: such as "cuda" or "cpu"; a GPU if there is one when None.
        dtype: "auto" for the dtype of the weights, or a name such as "bfloat16".
        batch_size: 1; prompts are answered one at a time.
        fps, max_num_frames: how frames are taken from video files.
        system_prompt: put in front of every chat.
        **options: SegMo's own, such as ``keep=0.25``; see :class:`segmo.options.Options`.

    Raises:
        OptionError: an unknown option, or a model of an unknown family.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        fps: float = 2.0,
        max_num_frames: int = 64,
        system_prompt: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if str(batch_size) not in ("1", "auto"):
            raise OptionError(
                f"batch_size={batch_size}: prompts of different lengths are answered one at a time; use 1"
            )
        from transformers import AutoModelForImageTextToText, AutoProcessor

        auto_model: Any = AutoModelForImageTextToText
        auto_processor: Any = AutoProcessor
        self.options = parse_options(options)
        if self.options.scorer == "external":
            raise OptionError('scorer="external" takes scores from a program; use "embedding" or "attention"')
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.processor = auto_processor.from_pretrained(pretrained)
        self.model = auto_model.from_pretrained(pretrained, dtype=dtype).to(self.device).eval()
        self.sampling = Sampling(float(fps), int(max_num_frames))
        self.system_prompt = system_prompt
        segmo.compile(self.model, **self.options.as_dict())

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """An answer for each request."""
        found, tokens, seconds = [], 0, 0.0
        for request in track(requests, description="segmo"):
            context, to_messages, settings, number, task, split = request.args
            text, made, took = self._answer(to_messages(self.task_dict[task][split][number]), dict(settings))
            tokens, seconds = tokens + made, seconds + took
            self.cache_hook.add_partial("generate_until", (context, settings), text)
            found.append(GenerationResult(text=text, token_counts=TokenCounts(output_tokens=made)))
        speed = tokens / seconds if seconds else 0.0
        log_metrics(total_gen_tokens=tokens, total_elapsed_time=seconds, avg_speed=speed)
        return found

    @torch.no_grad()
    def _answer(self, messages: list[Any], settings: dict[str, Any]) -> tuple[str, int, float]:
        """The answer, its number of tokens, and the seconds of ``generate``."""
        if self.system_prompt:
            messages = self._apply_system_prompt(messages, self.system_prompt)
        chat = ChatMessages(messages=messages).model_dump()["messages"]
        _, inputs = chat_inputs(self.processor, chat, self.sampling)
        inputs = inputs.to(self.device, self.model.dtype)
        start = time.perf_counter()
        ids = self.model.generate(**inputs, **generation(settings))
        took = time.perf_counter() - start
        answer = ids[0, inputs["input_ids"].shape[1] :]
        text = str(self.processor.tokenizer.decode(answer, skip_special_tokens=True)).strip()
        stops = settings.get("until") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.split(stop)[0]
        return text, len(answer), took

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: SegMo drops tokens by the question, so the likelihood of a given answer is another model's."""
        raise NotImplementedError("the model segmo answers generate_until tasks")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: a video has to be in the first prompt of a cache."""
        raise NotImplementedError("the model segmo answers one round")


def generation(settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate`` from a task's generation settings; greedy unless a temperature is set."""
    found: dict[str, Any] = {"max_new_tokens": int(settings.get("max_new_tokens", 128)), "do_sample": False}
    if (settings.get("temperature") or 0) > 0:
        found.update(do_sample=True, temperature=settings["temperature"], top_p=settings.get("top_p"))
    if (settings.get("num_beams") or 1) > 1:
        found["num_beams"] = settings["num_beams"]
    return found
