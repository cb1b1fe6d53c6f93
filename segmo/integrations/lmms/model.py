"""The chat model ``segmo`` of lmms-eval: any Video LLM, with SegMo's options as model arguments.

This module needs lmms-eval (``pip install 'segmo[lmms]'``); only lmms-eval imports it.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from rich.progress import track

import segmo
from segmo.errors import OptionError, SegMoError
from segmo.integrations.lmms.arguments import (
    family_names,
    generation,
    of_family,
    parse_options,
    stopped,
    takes_rounds,
    truth,
    unquoted,
)
from segmo.integrations.lmms.prompts import Sampling, chat_inputs
from segmo.pretrained import load_model
from segmo.upstream.clips import moved


@dataclasses.dataclass(frozen=True)
class Asked:
    """A prompt on its way to the model."""

    messages: list[Any]
    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer:
    """A text, and the number of its tokens."""

    text: str
    tokens: int


class LikelihoodError(SegMoError, NotImplementedError):
    """A task asks for what SegMo cannot give."""


class SegmoChat(lmms):  # type: ignore[misc]  # lmms-eval has no types
    """A Video LLM that is compiled by SegMo.

    Several processes (``accelerate launch`` or ``torchrun``) share out the requests, as lmms-eval's own models do. With
    ``shard=True`` they answer each request together instead, its segments spread over them.

    Args:
        pretrained: folder (or name) of a Video LLM with its processor.
        device: such as "cuda" or "cpu"; a GPU if there is one when None.
        dtype: "auto" for the dtype of the weights, or a name such as "bfloat16".
        batch_size: 1; prompts are answered one at a time.
        fps, max_num_frames: how frames are taken from video files.
        system_prompt: put in front of every chat.
        shard: spread one prompt over all processes; so does ``ranks="all"``.
        **options: SegMo's own, such as ``keep=0.25``; see :class:`segmo.options.Options`.

    Raises:
        OptionError: an unknown option, or a model that takes no video.
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
        ranks = unquoted(options.pop("ranks", None))
        if ranks not in (None, "all"):
            raise OptionError(f'ranks={ranks!r}: a prompt is spread over all processes (ranks="all") or over none')
        self.options = parse_options(options)
        if self.options.scorer == "external":
            raise OptionError('scorer="external" takes scores from a program; use "embedding" or "attention"')
        self.shard = truth("shard", shard) or ranks == "all"
        self.sampling = Sampling(float(fps), int(max_num_frames))
        self.system_prompt = system_prompt
        self._tokens, self._seconds = 0, 0.0  # that answers took since the last block of requests began
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
        from transformers import AutoProcessor

        auto: Any = AutoProcessor
        self.processor = auto.from_pretrained(pretrained)
        self.model = load_model(pretrained, dtype).to(self.device)
        ranks = {"ranks": dist.group.WORLD} if self.shard else {}
        segmo.compile(self.model, **self.options.as_dict() | ranks)

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """An answer for each request."""
        found = []
        with self._measured():
            # As many for every process where they answer together; lmms-eval fills up those that have fewer.
            for request in track(requests, description="segmo", disable=self._rank != 0):
                answer = self._answered(self._everyones(self._asked(request)))
                assert answer is not None
                self.cache_hook.add_partial("generate_until", (request.args[0], request.args[2]), answer.text)
                found.append(GenerationResult(text=answer.text, token_counts=TokenCounts(output_tokens=answer.tokens)))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers of each request's rounds.

        As for lmms-eval's own chat models, a round is a prompt of its own, which the task writes from the answers so
        far; so each round's tokens are chosen by its own question.
        """
        found = []
        with self._measured():
            for request in track(requests, description="segmo", disable=self._rank != 0):
                texts = self._rounds(request)
                self.cache_hook.add_partial("generate_until_multi_round", (request.args[0], request.args[2]), texts)
                found.append(texts)
        return found

    def _rounds(self, request: Any) -> list[str]:
        texts: list[str] = []
        asked: Asked | None = self._asked(request)
        information = None
        # Where processes answer together, one whose task has ended helps with the rounds of the others.
        while any(everyones := self._everyones(asked)):
            answer = self._answered(everyones)
            if answer is None:
                continue
            texts.append(answer.text)
            asked, information = self._next_round(request, texts, information)
        return texts

    def _next_round(self, request: Any, texts: list[str], information: Any) -> tuple[Asked | None, Any]:
        """What the task asks next, None at its end; and what it hands to the round after that."""
        to_messages = request.args[1]
        if not takes_rounds(to_messages):
            return None, None
        found = to_messages(
            self._document(request),
            round_idx=len(texts),
            previous_output=list(texts),
            previous_round_info=information,
        )
        if not (isinstance(found, tuple) and len(found) == 4):
            return None, None
        messages, ends, _, information = found
        return (None if ends else self._with_settings(request, messages)), information

    def _asked(self, request: Any) -> Asked:
        """The chat and the generation settings of a request, those of the model's family where the task has some."""
        to_messages = request.args[1]
        task = getattr(to_messages, "__self__", None)
        prompts = of_family(getattr(task, "lmms_eval_specific_kwargs", None), self._names)
        if task is not None and prompts is not None:
            task.lmms_eval_specific_kwargs = prompts
        return self._with_settings(request, to_messages(self._document(request)))

    def _document(self, request: Any) -> Any:
        _, _, _, number, task, split = request.args
        return self.task_dict[task][split][number]

    def _with_settings(self, request: Any, messages: list[Any]) -> Asked:
        _, to_messages, settings, *_ = request.args
        config = getattr(getattr(to_messages, "__self__", None), "config", None)
        own = of_family(getattr(config, "model_specific_generation_kwargs", None), self._names) or {}
        if self.system_prompt:
            messages = self._apply_system_prompt(messages, self.system_prompt)
        return Asked(ChatMessages(messages=messages).model_dump()["messages"], {**settings, **own})

    def _everyones(self, own: Asked | None) -> list[Asked | None]:
        """The prompts that this process works on: its own, or with ``shard`` those of all."""
        if not self.shard:
            return [own]
        everyones = [own] * self._world_size
        dist.all_gather_object(everyones, own)
        return everyones

    def _answered(self, everyones: list[Asked | None]) -> Answer | None:
        """The answer to this process's own prompt, once all are answered."""
        found = [None if asked is None else self._answer(asked) for asked in everyones]
        return found[int(self._rank) if self.shard else 0]

    def _answer(self, asked: Asked) -> Answer:
        _, inputs = chat_inputs(self.processor, asked.messages, self.sampling)
        inputs = moved(inputs, self.model)
        start = time.perf_counter()
        with torch.no_grad():
            ids = self.model.generate(**inputs, **generation(asked.settings))
        answer = ids[0, inputs["input_ids"].shape[1] :]
        self._tokens, self._seconds = self._tokens + len(answer), self._seconds + time.perf_counter() - start
        text = str(self.processor.tokenizer.decode(answer, skip_special_tokens=True)).strip()
        return Answer(stopped(text, asked.settings.get("until")), len(answer))

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Tells lmms-eval how many tokens were made in the block, and how fast."""
        self._tokens, self._seconds = 0, 0.0
        yield
        speed = self._tokens / self._seconds if self._seconds else 0.0
        log_metrics(total_gen_tokens=self._tokens, total_elapsed_time=self._seconds, avg_speed=speed)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: SegMo drops tokens by the question, so the likelihood of a given answer is another model's."""
        raise LikelihoodError(
            "the model segmo answers tasks of the types generate_until and generate_until_multi_round; a likelihood "
            "(loglikelihood, multiple_choice) would be that of a model which chose its tokens by another question"
        )
