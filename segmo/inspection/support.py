"""What SegMo does for each Video LLM family of transformers, and how that is known.

``tested`` is what the tests run on a tiny model of the family; ``inferred`` follows from the same rules, which the
family fulfils, and is not run; anything else is the reason why not.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields

TESTED, INFERRED = "tested", "inferred"

# One row a family: its model_type, and what differs from most.
_OWN_RULES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
_SEVERAL_GRAPHS = {
    "qwen4_exp": "its indexer loops over tokens in Python, which parts the graph",
}
_FOREIGN_MASK = {
    "dots3_note": "an index picks each query's keys",
    "glm5_next": "an index picks each query's keys",
    "molmo2": "tokens of a frame see each other both ways",
    "gemma4_unified": "tokens of a frame see each other both ways",
}
_NO_CUT = {"minimax_m3_vl": "its sparse layers take position ids for places among the keys"}
# Recurrent layers (linear attention, Mamba, short convolutions) stand between those with full attention.
_HYBRID = ("qwen3_5", "qwen3_5_moe", "minicpmv4_6", "minicpmv4_7", "lfm3_vl", "nemotron_h_omni")
_ASKED_FOR = (
    "tested, and off unless segments is a number: what segments cost the answers of a model with recurrent layers is "
    "not measured"
)
_RANKS = (
    *("qwen3_vl_moe", "qwen2_5_omni", "qwen3_omni_moe", "glm46v", "internvl", "smolvlm", "video_llama_3"),
    *("llava_next_video", "ernie4_5_vl_moe", "cosmos3_edge"),
    # Layers with a window, an index, or keys and values of two sizes.
    *("gemma4", "cohere_compass", "exaone4_5", "muse_glimmer", "muse_spark", "kimi_k25"),
    *("qwen3_5", "minicpmv4_6", "minicpmv4_7", "lfm3_vl", "nemotron_h_omni"),
)
_OTHERS = (
    *("qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen2_5_omni", "qwen3_omni_moe", "llava_next_video", "video_llava"),
    *("video_llama_3", "internvl", "smolvlm", "perception_lm", "glm4v", "glm4v_moe", "glm46v", "glmga", "gemma4"),
    *("minicpmv4_6", "minicpmv4_7", "hyperclovax_vision_v2", "exaone4_5", "cohere_compass", "cosmos3_edge"),
    *(
        "ernie4_5_vl_moe",
        "cosmos3_omni",
        "muse_glimmer",
        "muse_spark",
        "lfm3_vl",
        "kimi_k25",
        "nemotron_h_omni",
        "minimax_m3_vl",
    ),
)
# Their own processors are built from local files in tests.
_WITH_PROCESSORS = (
    *("qwen3_5", "qwen3_vl_moe", "qwen2_5_omni", "glm46v", "internvl", "gemma4", "smolvlm", "video_llama_3"),
    *("llava_next_video", "minicpmv4_6"),
)
_NO_ENTRY = "no entry in segmo.families says how its video is laid out in front of the graph"


@dataclass(frozen=True)
class Support:
    """One family's row; see the module for the words.

    Attributes:
        family: ``config.model_type``.
        cas, lsp: token selection, and segment attention.
        upstream: the choice of frames in front of the vision encoder (``frames`` below 1).
        ranks: segments over ranks.
        vision_ranks: the vision encoder over ranks.
        run: ``segmo run``.
    """

    family: str
    cas: str
    lsp: str
    upstream: str
    ranks: str
    vision_ranks: str
    run: str


HEADINGS = ("family", "CAS", "LSP", "frames<1", "ranks", "vision over ranks", "segmo run")
assert len(HEADINGS) == len(fields(Support))


def families() -> list[Support]:
    """Every family that was tried, those with rules of their own first."""
    rows = [Support(family, TESTED, TESTED, TESTED, TESTED, TESTED, TESTED) for family in _OWN_RULES]
    for family in sorted((*_OTHERS, *_FOREIGN_MASK, *_SEVERAL_GRAPHS)):
        apart = _SEVERAL_GRAPHS.get(family)
        if apart:
            rows.append(Support(family, apart, apart, apart, apart, _NO_ENTRY, INFERRED))
            continue
        cas = _NO_CUT.get(family, TESTED)
        lsp = _ASKED_FOR if family in _HYBRID else _FOREIGN_MASK.get(family, TESTED)
        run = TESTED if family in _WITH_PROCESSORS else INFERRED
        upstream = f"needs a decoder that drops tokens: {_NO_CUT[family]}" if family in _NO_CUT else TESTED
        rows.append(Support(family, cas, lsp, upstream, _ranks(family), _NO_ENTRY, run))
    return rows


def _ranks(family: str) -> str:
    if family in _RANKS:
        return TESTED
    return _FOREIGN_MASK.get(family, INFERRED)


_HEAD = """\
# Families

Made by `segmo families --markdown`. `tested`: the tests run it on a tiny model of the family, in transformers' own
classes. `inferred`: it follows from the same rules and is not run. A number is the reason why not. A model that is not
in the table, of transformers or your own, is treated by the same rules; what they cannot tell is asked for by
`segmo.describe(model, frames=..., placeholder=...)`.
"""


def markdown() -> str:
    """``docs/families.md``."""
    rows = families()
    notes = list(dict.fromkeys(cell for row in rows for cell in astuple(row)[1:] if cell not in (TESTED, INFERRED)))
    lines = [_HEAD, "| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    for row in rows:
        cells = [str(notes.index(cell) + 1) if cell in notes else cell for cell in astuple(row)[1:]]
        lines.append("| " + " | ".join([f"`{row.family}`", *cells]) + " |")
    lines += ["", *(f"{number}. {note[0].upper()}{note[1:]}." for number, note in enumerate(notes, 1)), ""]
    return "\n".join(lines)
