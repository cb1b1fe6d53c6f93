"""Why a pass did not apply: every reason in one place, each with what would make the pass apply."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from segmo.passes.graph import source_line


@dataclass(frozen=True)
class Reason:
    """A reason in words.

    Attributes:
        code: short stable name.
        text: what was found; ``{detail}`` is filled in.
        remedy: what to change.
    """

    code: str
    text: str
    remedy: str


_ALL = (
    Reason("no-decoder", "the graph has no decoder attention", "nothing to do: such graphs run as they are"),
    Reason(
        "other-attention",
        "the decoder's attention is {detail}, not scaled_dot_product_attention",
        'load the model with attn_implementation="sdpa"',
    ),
    Reason("decode", "this graph decodes with a filled KV cache", "nothing to do: the cache is already short"),
    Reason(
        "decoder-outside",
        "torch.compile ran the decoder's layers outside of the graphs that it made of the call: {detail}",
        "let them be compiled: no torch.compiler.disable on them, and model.eval() where gradient checkpointing is on",
    ),
    Reason("not-compiled", "torch.compile ran the call as it was: {detail}", "let torch.compile compile this call"),
    Reason("text-only", "the prompt has no video", "nothing to do: text-only prompts run as they are"),
    Reason("images", "the prompt has an image and no video", "nothing to do: such prompts run as they are"),
    Reason(
        "images-and-video",
        "images and frames have one placeholder, and some pictures of the prompt are not laid out as frames of a video",
        "ask about the video alone, or use a model with a placeholder of its own for video; where all pictures are "
        "frames, segmo.describe(model, frames=...) says so",
    ),
    Reason(
        "no-merge",
        "the video's features enter the text embeddings outside this graph ({detail})",
        "use segmo.compile(model), or generate(); for a direct call pass position_ids and mm_encoder_outputs; where "
        'you do, TORCH_LOGS="graph_breaks" says what in the model breaks its graph',
    ),
    Reason(
        "other-merge",
        "the video's features enter the text embeddings by another operation than masked_scatter",
        "use the newest transformers, or let the model's forward merge them by masked_scatter",
    ),
    Reason(
        "no-positions",
        "the M-RoPE position ids are not an input of this graph",
        "use segmo.compile(model) and pass input_ids with all that the processor gives, mm_token_type_ids too; or pass "
        "position_ids",
    ),
    Reason(
        "user-mask",
        "the attention mask was handed in as a {detail}-D tensor",
        "pass the processor's 2-D attention_mask",
    ),
    Reason(
        "foreign-mask",
        "the attention mask depends on {detail}",
        "only causal masks with padding can be replaced by segments",
    ),
    Reason(
        "not-causal",
        "the attention of a decoder layer is not causal",
        "segments replace causal attention only",
    ),
    Reason("dropout", "the decoder's attention drops weights at random", "call model.eval()"),
    Reason(
        "local-layer",
        "a layer sees a neighbourhood of each token only, so that segments would add nothing",
        "nothing to do: such layers run as they are",
    ),
    Reason(
        "one-row",
        "a layer computes the last token's row only, which sees every segment",
        "nothing to do: such layers run as they are",
    ),
    Reason(
        "static-cache",
        "keys and values go into a cache of fixed length",
        "use the default DynamicCache: leave cache_implementation unset",
    ),
    Reason(
        "filled-cache",
        "the KV cache already holds tokens when the video arrives",
        "put the video into the first call with a cache; leave prefill_chunk_size unset",
    ),
    Reason(
        "unknown-count",
        "how many video tokens the prompt has is not known before the graph runs",
        "let the vision encoder run before the graph: use segmo.compile(model), or generate()",
    ),
    Reason("keep-all", "keep=1 keeps every token", "set keep below 1 to drop tokens"),
    Reason("one-segment", "segments=1 is full attention", "set segments to 'scene' or a number above 1"),
    Reason(
        "hybrid",
        "the decoder has recurrent layers between those with full attention, where segments are not measured",
        "set segments to a number to have them there all the same",
    ),
    Reason("no-context", "context=0 and tails=0 ask for no context tokens", "set one of them above 0"),
    Reason(
        "every-row",
        "the last layer's result is asked for at more places than the last token",
        "pass logits_to_keep=1, as generate() does, and no output_hidden_states",
    ),
    Reason("gradients", "gradients are recorded", "run the model under torch.inference_mode() or torch.no_grad()"),
    Reason("no-copies", "no attention copies keys and values for the query heads that share them", "nothing to do"),
    Reason("off-cpu", "only the CPU's attention was found to gain from it", "nothing to do"),
    Reason("own-buffers", "inductor plans its own buffers", "nothing to do"),
    Reason("as-it-is", "the graph is run call by call, and nothing is compiled", "nothing to do"),
    Reason(
        "no-repeats",
        "no two stretches of the graph are alike in calls and in kinds of operands, behind the last call whose "
        "result's size is in the data",
        "nothing to do",
    ),
    Reason(
        "no-regions",
        "this version of PyTorch has no code that is compiled once and called again in a graph",
        "torch 2.14 has; until then the first call takes longer with each layer",
    ),
    Reason(
        "modes",
        "the model sets in the middle of the graph what PyTorch computes with ({detail})",
        "nothing to do: inductor compiles every layer, which takes longer in the first call",
    ),
    Reason(
        "no-values",
        "sizes could not be traced through the graph as it is now: {detail}",
        "nothing to do: inductor compiles every layer, which takes longer in the first call",
    ),
    Reason("no-stretch", "no two linear layers stand in calls that keep rows apart", "nothing to do"),
    Reason("no-segments", "no attention was replaced by segments", "see why segment-attention did not apply"),
    Reason(
        "no-layer",
        "layer={detail}",
        "choose a decoder layer that the model has",
    ),
    Reason(
        "frames-mix",
        "the vision encoder's features of a frame depend on other frames",
        "nothing to do: every frame is encoded, and those that are not chosen are dropped behind the encoder",
    ),
    Reason(
        "frame-place",
        "the vision encoder's features of a frame change when other frames are left out (by {detail})",
        "nothing to do: every frame is encoded, and those that are not chosen are dropped behind the encoder",
    ),
    Reason(
        "unknown-operator",
        "it is not known how {detail} carries one frame's pixels to another's features",
        "add a rule to passes/frame_dependence.py; until then every frame is encoded",
    ),
    Reason(
        "pixels-decide",
        "what the vision encoder computes depends on the values of the pixels ({detail})",
        "nothing to do: every frame is encoded, and those that are not chosen are dropped behind the encoder",
    ),
    Reason(
        "no-encoder",
        "frames are chosen before the vision encoder, and this model's encoder is not SegMo's to call",
        "use segmo.compile(model); every frame was encoded, and keep was at most frames",
    ),
    Reason(
        "no-pixels",
        "the vision encoder is not in this graph",
        "leave the pass out of the pipeline: where frames are chosen it runs by itself",
    ),
    Reason(
        "no-ids",
        "frames are chosen before the vision encoder by the prompt's token ids, and its embeddings came alone",
        "pass input_ids beside inputs_embeds; every frame was encoded",
    ),
    Reason("no-group", "there is one process", "start the program with torchrun and several processes"),
    Reason("not-asked", "there is a process group, and ranks=None", 'set ranks="all", or ranks to a group'),
    Reason(
        "batch",
        "segments are spread over ranks one prompt at a time, and the batch has several",
        "call the model once per prompt",
    ),
    Reason(
        "whole-cache",
        "a layer that is neither cut into segments nor local ({detail}) needs all ranks' keys and values to decode",
        'use cache="gather"',
    ),
    Reason(
        "late-selection",
        'with scorer="attention" the caches of the first layers are whole on every rank',
        'use cache="gather", or another scorer',
    ),
    Reason(
        "masked-decode",
        "a decode step has an attention mask, and the cache is spread over the ranks",
        "pass prompts without padding and use the default DynamicCache",
    ),
    Reason(
        "cannot-follow",
        "the shorter sequence could not be followed through the graph: {detail}",
        "report it with this line of the model; disable select-tokens until then",
    ),
    Reason(
        "fixed-lengths",
        "the graph is for one length of prompt, and {detail}",
        "compile with dynamic=True, which makes one graph for all lengths",
    ),
)

REASONS: dict[str, Reason] = {reason.code: reason for reason in _ALL}


@dataclass(frozen=True)
class Miss:
    """A place where a pass did not apply.

    Attributes:
        code: key of ``REASONS``.
        reason: what was found.
        remedy: what would make the pass apply.
        node: name of the graph node, if one is to blame.
        source: the line of the model that the node came from; without a node, the user's line that called the model.
        expected: whether this is how it should be (a text-only prompt, a decode step) and nothing was lost.
    """

    code: str
    reason: str
    remedy: str
    node: str | None = None
    source: str | None = None

    @property
    def expected(self) -> bool:
        return self.code in EXPECTED

    @property
    def place(self) -> str:
        """Where it happened, as far as that is known: the source line, else the node."""
        return self.source or self.node or ""

    @classmethod
    def of(cls, code: str, detail: object = "", node: Node | None = None) -> Miss:
        """The miss for a reason's code, its text filled in with ``detail``."""
        reason = REASONS[code]
        return cls(
            code,
            reason.text.format(detail=detail),
            reason.remedy,
            None if node is None else node.name,
            None if node is None else source_line(node),
        )


EXPECTED = frozenset({
    "no-decoder", "decode", "text-only", "images", "keep-all", "one-segment", "no-context", "no-segments", "no-group",
    "not-asked", "every-row", "gradients", "own-buffers", "local-layer", "one-row", "hybrid", "no-copies",
    "off-cpu", "no-stretch", "no-pixels", "as-it-is", "no-repeats", "no-regions", "modes", "no-values",
})  # fmt: skip


class DoesNotApply(Exception):  # control flow inside a pass, never seen by a user
    """Raised inside a pass; the runner restores the graph and reports the miss."""

    def __init__(self, miss: Miss) -> None:
        super().__init__(miss.reason)
        self.miss = miss
