"""A Qwen2.5-VL processor without a model hub: real image and video processors, a tokenizer trained here.

The tokenizer is byte-level BPE as Qwen's is, so it can read any text, but it is trained on a page of text and
has fewer than a thousand tokens instead of 150,000. A real checkpoint brings its own.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    BatchFeature,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from segmo.memory.prompt import chat, user
from segmo.video import Clip

CELL = 28  # pixels of a token's side: two 14-pixel patches are merged
VOCABULARY = 1024  # at most; a page of text has fewer pairs to merge

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"

# One turn per message, videos and images as a placeholder that the processor repeats once per token.
CHAT_TEMPLATE = f"""\
{{%- if messages[0].role != "system" -%}}
{TURN_START}system
You are a helpful assistant.{TURN_END}
{{% endif -%}}
{{%- for message in messages -%}}
{TURN_START}{{{{ message.role }}}}
{{% if message.content is string -%}}
{{{{ message.content }}}}
{{%- else -%}}
{{%- for part in message.content -%}}
{{%- if part.type == "video" -%}}{VISION_START}{VIDEO}{VISION_END}
{{%- elif part.type == "image" -%}}{VISION_START}{IMAGE}{VISION_END}
{{%- else -%}}{{{{ part.text }}}}
{{%- endif -%}}
{{%- endfor -%}}
{{%- endif -%}}
{TURN_END}
{{% endfor -%}}
{{%- if add_generation_prompt -%}}{TURN_START}assistant
{{% endif -%}}
"""

TRAINING_TEXT = """
You are a helpful assistant. system user assistant. Describe the video. What happens in this video? Who is in
it? When does the taxi come into view? What is the man on the bicycle waiting for? How many people walk past
the parked bicycle? What colour is the bus, and where does the street lead? Which animal wakes up, and what
does it do then? The video begins on a wide street. Cars drive past behind an iron fence, and an old bicycle
leans against it. The houses on the other side are red and grey, and the sky above them is bright. Nothing
much happens here for a while. Then the camera looks down on the white roof of a bus that rolls slowly through
the picture. A rabbit as large as a bear crawls out of its burrow under a tree, stretches its arms and yawns.
The grass is green and the morning is warm. A man in a dark suit walks between the cars, and behind him a
black taxi waits with its sign lit. A cyclist with a helmet stands at the traffic light, one foot on the
ground, while vans and cars pass in front of him. When the light changes, he will ride on. On the pavement, a
bicycle is chained to a wall beside a green post. Somebody walks past it from left to right, and we only see
the legs. After that the picture does not change for a long time. A model that watches a video reads it as a
long row of tokens, a few hundred for each moment of it. Most of them show what the moment before has shown
already: the same wall, the same fence, the same sky. It is enough to look at what is new, and at the scenes
that the question is about. First find the scenes, then ask which of them matter, and then keep the tokens
that bring something new. The order of the tokens and their positions stay as they were. At what time, in
which scene, for how long, on the left, on the right, in front of, behind, before, after, first, last, one,
two, three, four, five, six, seven, eight, nine, ten, 0 1 2 3 4 5 6 7 8 9. Yes. No. There is. There are. I
think.
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen's special tokens, trained on ``TRAINING_TEXT``."""
    special = [END_OF_TEXT, TURN_START, TURN_END, VISION_START, VISION_END, IMAGE, VIDEO]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT.strip().splitlines(), trainer)
    wrap: Any = PreTrainedTokenizerFast  # its constructor has no types
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=special,
        padding_side="left",
    )
    return wrapped


def build_processor() -> Qwen2_5_VLProcessor:
    """The transformers processor of Qwen2.5-VL around :func:`build_tokenizer`."""
    pixels = {"shortest_edge": 4 * CELL**2, "longest_edge": 768 * CELL**2}
    build: Any = Qwen2_5_VLProcessor  # its constructor has no types
    processor: Qwen2_5_VLProcessor = build(
        image_processor=Qwen2VLImageProcessor(size=pixels),
        video_processor=Qwen2VLVideoProcessor(size=pixels, cap_pixels_per_frame=False),
        tokenizer=build_tokenizer(),
        chat_template=CHAT_TEMPLATE,
    )
    return processor


def ids_behind(processor: Qwen2_5_VLProcessor, question: str) -> Tensor:
    """Ids of all that stands behind the video when this is asked, (T,)."""
    tokenizer: Any = processor.tokenizer
    ids = tokenizer(chat(processor, [user(question, video=True)]))["input_ids"]
    return torch.tensor(ids[ids.index(tokenizer.convert_tokens_to_ids(processor.video_token)) + 1 :])


def encode_prompt(processor: Qwen2_5_VLProcessor, video: Clip, question: str, cells: tuple[int, int]) -> BatchFeature:
    """Model inputs of one question about one video.

    Args:
        processor: from :func:`build_processor`, or a checkpoint's own.
        video: the frames to show; they are not sampled again.
        question: what is asked, after the video.
        cells: (width, height) of a frame in tokens, for frames whose sides are in that ratio.

    Returns:
        What ``model.generate`` takes: ``input_ids``, ``attention_mask``, ``mm_token_type_ids`` (1, N),
        ``pixel_values_videos`` (patches, pixels of a patch), ``video_grid_thw`` (1, 3) in patches and
        ``second_per_grid_ts`` (1,).
    """
    text = chat(processor, [user(question, video=True)])
    pixels = cells[0] * cells[1] * CELL**2
    metadata = {
        "total_num_frames": len(video.frames),
        "fps": video.fps,
        "frames_indices": list(range(len(video.frames))),
    }
    inputs: BatchFeature = processor(
        text=[text],
        videos=[video.frames],
        video_metadata=[metadata],
        size={"shortest_edge": pixels, "longest_edge": pixels},
        return_tensors="pt",
    )
    return inputs
