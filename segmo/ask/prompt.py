"""The prompt of a question about a video that is encoded already.

A processor writes a prompt for frames that it is given. Here the frames are gone, so what it wrote for the video (one
token per feature, and what a family puts between frames) is taken out of its first prompt, and set into those of
further questions.

Legend: N prompt tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segmo.errors import PromptError


@dataclass(frozen=True)
class VideoText:
    """What stands in a prompt for a video.

    Attributes:
        ids: the tokens, (n,) int64.
        before, after: tokens of the template around its video token whose place they take too.
    """

    ids: Tensor
    before: int
    after: int


def chat(processor: Any, question: str) -> str:
    """The prompt as text, with one placeholder for the video."""
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return text


def short_ids(processor: Any, text: str, video_token: int) -> list[int]:
    """Token ids with one video token for the whole video.

    Raises:
        PromptError: there is not exactly one.
    """
    ids: list[int] = processor.tokenizer(text)["input_ids"]
    count = ids.count(video_token)
    if count != 1:
        name = processor.tokenizer.convert_ids_to_tokens(video_token)
        raise PromptError(f"the prompt has {count} video tokens {name}, not one; a question must not hold that token")
    return ids


def cut_out(full: Tensor, short: list[int], video_token: int) -> VideoText:
    """What the processor wrote for the video: where its prompt is not that of the text alone.

    Args:
        full: ids with the video written out, (N,).
        short: ids of the same text with one video token.
        video_token: its id.
    """
    place = short.index(video_token)
    long = full.tolist()
    before = next((i for i in range(place) if long[i] != short[i]), place)
    tail = len(short) - place - 1
    after = next((i for i in range(tail) if long[-1 - i] != short[-1 - i]), tail)
    return VideoText(full[before : len(long) - after].clone(), place - before, tail - after)


def fill_in(video: VideoText, short: list[int], video_token: int) -> Tensor:
    """The ids of another question with the same video, (N,) int64."""
    place = short.index(video_token)
    head, tail = short[: place - video.before], short[place + 1 + video.after :]
    return torch.cat([torch.tensor(head, dtype=torch.int64), video.ids, torch.tensor(tail, dtype=torch.int64)])
