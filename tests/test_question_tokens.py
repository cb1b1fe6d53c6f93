"""Which tokens are the question: told from ids and what is known of a chat template, whatever the order of a turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from segmo.compiler.chat import Chat, chat_of, chat_of_tokenizer
from segmo.demo.processor import CHAT_TEMPLATE, TRAINING_TEXT, build_tokenizer
from segmo.runtime.layout import video_layout
from segmo.runtime.question import NO_CHAT, ChatTokens, find_question, question_tokens
from segmo.runtime.runs import runs

_TURNS = """\
{{%- for m in messages -%}}{{{{ {header} }}}}{{%- for part in m.content -%}}{{%- if part.type == "video" -%}}<video>
{{%- else -%}}{{{{ part.text }}}}{{%- endif -%}}{{%- endfor -%}}{{{{ {footer} }}}}{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{ {reply} }}}}{{%- endif -%}}
"""


def _turns(header: str, footer: str, reply: str) -> str:
    return _TURNS.format(header=header, footer=footer, reply=reply)


# How the families of today write a turn. Each is given (control tokens, template).
TEMPLATES: dict[str, tuple[Sequence[str], str]] = {
    "chatml": (("<|im_start|>", "<|im_end|>"), CHAT_TEMPLATE.replace("<|video_pad|>", "<video>")),
    "llama3": (
        ("<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin|>"
        + _turns(
            '"<|start_header_id|>" + m.role + "<|end_header_id|>\n\n"',
            '"<|eot_id|>"',
            '"<|start_header_id|>assistant<|end_header_id|>\n\n"',
        ),
    ),
    "gemma": (
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>"
        + _turns(
            '"<start_of_turn>" + ("model" if m.role == "assistant" else m.role) + "\n"',
            '"<end_of_turn>\n"',
            '"<start_of_turn>model\n"',
        ),
    ),
    "glm": (
        ("[gMASK]", "<|user|>", "<|assistant|>"),
        "[gMASK]" + _turns('"<|" + m.role + "|>\n"', '""', '"<|assistant|>\n"'),
    ),
    "smolvlm": (
        ("<|im_start|>", "<end_of_utterance>"),
        "<|im_start|>" + _turns('m.role | capitalize + ": "', '"<end_of_utterance>\n"', '"Assistant:"'),
    ),
    "vicuna": (
        ("</s>",),
        _turns(
            '"USER: " if m.role == "user" else "ASSISTANT: "', '" " if m.role == "user" else "</s>"', '"ASSISTANT:"'
        ),
    ),
    "mistral": (
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "<s>" + _turns('"[INST]" if m.role == "user" else ""', '"[/INST]" if m.role == "user" else "</s>"', '""'),
    ),
}


def tokenizer_of(name: str) -> Any:
    """A byte-level tokenizer with the template's control tokens."""
    control, template = TEMPLATES[name]
    special = ["<pad>", "<video>", "<|vision_start|>", "<|vision_end|>", *control]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TRAINING_TEXT.splitlines(), "USER: ASSISTANT: User: Assistant: model"] * 2, trainer)
    wrap: Any = PreTrainedTokenizerFast
    return wrap(
        tokenizer_object=tokenizer, pad_token="<pad>", additional_special_tokens=special, chat_template=template
    )


@pytest.fixture(scope="module", params=TEMPLATES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return tokenizer_of(request.param)


def rendered(
    tokenizer: Any, chat: list[tuple[str, ...]], cells: int = 6, reply: bool = True, video: str = "<video>"
) -> list[int]:
    """Ids of a chat whose turns are words and, as "", videos; the user's turn is first."""
    messages = [
        {
            "role": ("user", "assistant")[at % 2],
            "content": [{"type": "text", "text": part} if part else {"type": "video"} for part in turn],
        }
        for at, turn in enumerate(chat)
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply)
    ids: list[int] = tokenizer(text.replace(video, video * cells))["input_ids"]
    return ids


def found(ids: list[int], chat: Chat, video: int) -> str:
    places = find_question(ids, [token != video for token in ids], chat.tokens)
    return str(chat.decode([ids[place] for place in places]))


def squeezed(text: str) -> str:
    return "".join(text.split())


ASKED = "What is the man waiting for?"
CHATS = {
    "behind": ([("", ASKED)], ASKED),
    "before": ([(ASKED, "")], ASKED),
    "around two videos": ([("First", "", "then", "", ASKED)], "Firstthen" + ASKED),
    "a second turn": ([("", "Who is it?"), ("A rabbit.",), (ASKED,)], ASKED),
    "a second video": ([("", "Who is it?"), ("A rabbit.",), (ASKED, "")], ASKED),
    "names a role": ([("Who is the assistant of the user?", "")], "Who is the assistant of the user?"),
}


@pytest.mark.parametrize("case", CHATS)
@pytest.mark.parametrize("reply", [True, False])
def test_the_last_user_turn_is_found_in_every_template(tokenizer: Any, case: str, reply: bool) -> None:
    chat, expected = CHATS[case]
    known = chat_of_tokenizer(tokenizer)
    video = tokenizer.convert_tokens_to_ids("<video>")
    ids = rendered(tokenizer, chat, reply=reply)
    assert squeezed(found(ids, known, video)) == squeezed(expected)


def test_a_turn_that_only_shows_a_video_has_some_question_but_no_video_in_it(tokenizer: Any) -> None:
    ids = rendered(tokenizer, [("",)])
    video = tokenizer.convert_tokens_to_ids("<video>")
    places = find_question(ids, [token != video for token in ids], chat_of_tokenizer(tokenizer).tokens)
    assert places
    assert all(ids[place] != video for place in places)


@given(st.frozensets(st.integers(0, 300)), st.lists(st.lists(st.integers(0, 99), min_size=1).map(tuple), max_size=3))
def test_chat_tokens_survive_as_text(special: frozenset[int], ends: list[tuple[int, ...]]) -> None:
    chat = ChatTokens(special, frozenset({3, 4, 5}), (7, 1), tuple(ends))
    assert ChatTokens.parse(chat.to_text()) == chat
    assert ChatTokens.parse("") == NO_CHAT


class _Model:
    """What :func:`chat_of` reads of a model."""

    def __init__(self, path: str, **ids: Any) -> None:
        self.name_or_path = path
        self.config = PretrainedConfig(vocab_size=1000, **ids)
        self.generation_config = PretrainedConfig(eos_token_id=ids.get("eos_token_id"))


def test_the_tokenizer_beside_the_model_is_found(tmp_path: Any) -> None:
    tokenizer = tokenizer_of("gemma")
    tokenizer.save_pretrained(tmp_path)
    chat = chat_of(_Model(str(tmp_path), video_token_id=1, eos_token_id=2))
    assert chat.tokens.header == chat_of_tokenizer(tokenizer).tokens.header != ()
    assert str(tmp_path) in chat.source
    assert chat.decode([5]) == "<start_of_turn>"


def test_without_a_tokenizer_generations_end_marks_turns_and_a_header_is_told_by_the_replys() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    stop, start, video = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|im_start|>", "<|video_pad|>"))
    model = _Model("", eos_token_id=[stop, 0], bos_token_id=start, video_token_id=video)
    chat = chat_of(model)
    assert chat.source == "special ids of the config"
    assert {stop, start, video} <= chat.tokens.special
    for turns, expected in list(CHATS.values())[:2]:
        ids = rendered(tokenizer, turns, video="<|video_pad|>")
        places = find_question(ids, [token != video for token in ids], chat.tokens)
        words = tokenizer.decode([ids[place] for place in places], skip_special_tokens=True)
        assert squeezed(words) == squeezed(expected)


def test_with_nothing_known_all_text_is_the_question_and_embeddings_have_what_is_behind() -> None:
    video_BN = torch.tensor([[False, False, *[True] * 4, False, False, False]] * 2)
    frame_BN, cell_BN = video_layout(video_BN, None, 2, 0)
    ids_BN = torch.arange(18).reshape(2, 9)
    valid_BN = torch.ones(2, 9, dtype=torch.bool)
    valid_BN[1, 0] = False
    asked_BN = question_tokens(ids_BN, frame_BN, cell_BN, valid_BN, NO_CHAT)
    assert torch.equal(asked_BN, ~video_BN & valid_BN)
    behind_BN = question_tokens(None, frame_BN, cell_BN, valid_BN, NO_CHAT)
    assert behind_BN.nonzero()[:, 1].tolist() == [6, 7, 8] * 2
    before_BN = question_tokens(None, frame_BN[:, :6], cell_BN[:, :6], None, NO_CHAT)
    assert before_BN.any(1).all(), "never nothing"


def test_text_that_belongs_to_frames_is_no_question() -> None:
    """As a timestamp of two words in front of every frame, the first one's too."""
    row = [False] * 3 + [False, False, True, True, True] * 3 + [False] * 2
    video_BN = torch.tensor([row])
    frame_BN, cell_BN = video_layout(video_BN, torch.arange(len(row)).expand(3, 1, -1), 0, 0)
    asked_BN = question_tokens(torch.arange(len(row))[None], frame_BN, cell_BN, None, NO_CHAT)
    assert asked_BN[0].nonzero()[:, 0].tolist() == [0, 1, 2, 18, 19]


def test_runs_of_neighbours() -> None:
    assert runs([1, 2, 5, 7, 8, 9]) == [(1, 3), (5, 6), (7, 10)]
    assert runs([]) == []
