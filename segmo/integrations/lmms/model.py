"""The chat model ``segmo`` of lmms-eval: any Video LLM that SegMo knows, with SegMo's options as model arguments.

This module needs lmms-eval (``pip install 'segmo[lmms]'``); only lmms-eval imports it.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from rich.progress import track

import segmo
from segmo.errors import OptionError
from segmo.integrations.lmms.arguments import family_names, generation, of_family, parse_options, stopped, truth
from segmo.integrations.lmms.prompts import Sampling, chat_inputs


@dataclasses.dataclass(frozen=True)
class Asked:
    """A prompt on its way to the model."""

    messages: list[Any]
    settings: dict[str, Any]


class SegmoChat(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """A Video LLM that is compiled by SegMo.

    Several processes (``accelerate launch`` or ``torchrun``) share out the requests, as lmms-eval's own models do. With
    ``shard=True`` they answer each request together instead, its segments spread over them.

    Args:
        pretrained: folder (or name) of a model of a known family, with its processor.
        device: such as "cuda" or "cpu"; a GPU if there is one when None.
        dtype: "auto" for the dtype of the weights, or a name such as "bfloat16".
        batch_size: 1; prompts are answered one at a time.
        fps, max_num_frames: how frames are taken from video files.
        system_prompt: put in front of every chat.
        shard: spread one prompt over all processes.
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
        shard: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if str(batch_size) not in ("1", "auto"):
            raise OptionError(
                f"batch_size={batch_size}: prompts of different lengths are answered one at a time; use 1"
            )
        self.options = parse_options(options)
        if self.options.scorer == "external":
            raise OptionError('scorer="external" takes scores from a program; use "embedding" or "attention"')
        self.shard = truth("shard", shard)
        self.sampling = Sampling(float(fps), int(max_num_frames))
        self.system_prompt = system_prompt
        self.device = self._join(device)
        self._load(pretrained, dtype)
        self._names = family_names(self.model.config.model_type)

    def _join(self, device: str | None) -> torch.device:
        """Joins the other processes, if there are any; the device of this one."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            if self.shard:
                raise OptionError("shard=True spreads a prompt over processes; start several (accelerate, torchrun)")
            return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        from accelerate import Accelerator

        # Without GPUs accelerate joins processes only when told to.
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        return torch.device(device) if device and device != "cuda" else self.accelerator.device

    def _load(self, pretrained: str, dtype: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        auto_model: Any = AutoModelForImageTextToText
        auto_processor: Any = AutoProcessor
        self.processor = auto_processor.from_pretrained(pretrained)
        self.model = auto_model.from_pretrained(pretrained, dtype=dtype).to(self.device).eval()
        ranks = {"ranks": dist.group.WORLD} if self.shard else {}
        segmo.compile(self.model, **self.options.as_dict() | ranks)

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """An answer for each request."""
        found, tokens, seconds = [], 0, 0.0
        # As many for every process where they answer together; lmms-eval fills up those that have fewer.
        for request in track(requests, description="segmo", disable=self._rank != 0):
            text, made, took = self._answers(self._asked(request))
            tokens, seconds = tokens + made, seconds + took
            self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), text)
            found.append(GenerationResult(text=text, token_counts=TokenCounts(output_tokens=made)))
        speed = tokens / seconds if seconds else 0.0
        log_metrics(total_gen_tokens=tokens, total_elapsed_time=seconds, avg_speed=speed)
        return found

    def _asked(self, request: Any) -> Asked:
        """The chat and the generation settings of a request, those of the model's family where the task has some."""
        _, to_messages, settings, number, task, split = request.args
        settings = dict(settings)
        owner = getattr(to_messages, "__self__", None)  # the task
        if owner is not None:
            prompts = of_family(getattr(owner, "lmms_eval_specific_kwargs", None), self._names)
            if prompts is not None:
                owner.lmms_eval_specific_kwargs = prompts
            config = getattr(owner, "config", None)
            settings |= of_family(getattr(config, "model_specific_generation_kwargs", None), self._names) or {}
        messages = to_messages(self.task_dict[task][split][number])
        if self.system_prompt:
            messages = self._apply_system_prompt(messages, self.system_prompt)
        return Asked(ChatMessages(messages=messages).model_dump()["messages"], settings)

    def _answers(self, own: Asked) -> tuple[str, int, float]:
        """The answer to this process's prompt; with ``shard``, after all have answered the prompts of each."""
        if not self.shard:
            return self._answer(own)
        everyone: list[Asked] = [own] * self._world_size
        dist.all_gather_object(everyone, own)
        found: list[tuple[str, int, float]] = [self._answer(asked) for asked in everyone]
        return found[int(self._rank)]

    @torch.no_grad()
    def _answer(self, asked: Asked) -> tuple[str, int, float]:
        """The answer, its number of tokens, and the seconds of ``generate``."""
        _, inputs = chat_inputs(self.processor, asked.messages, self.sampling)
        inputs = inputs.to(self.device, self.model.dtype)
        start = time.perf_counter()
        ids = self.model.generate(**inputs, **generation(asked.settings))
        took = time.perf_counter() - start
        answer = ids[0, inputs["input_ids"].shape[1] :]
        text = str(self.processor.tokenizer.decode(answer, skip_special_tokens=True)).strip()
        return stopped(text, asked.settings.get("until")), len(answer), took

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: SegMo drops tokens by the question, so the likelihood of a given answer is another model's."""
        raise NotImplementedError("the model segmo answers generate_until tasks")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: a video has to be in the first prompt of a cache."""
        raise NotImplementedError("the model segmo answers one round")
