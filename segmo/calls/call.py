"""One call of a compiled model: what comes before the graph, the graph, what comes after it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch

from segmo.calls.attention import attention_of
from segmo.calls.hooks import Hooks
from segmo.calls.inputs import by_name, encoded, joined, pictures_of
from segmo.calls.length import look_at_length
from segmo.calls.pictures import no_video, refuse_gaps
from segmo.calls.shards import Shards
from segmo.calls.videos import cells_of, frames_of
from segmo.compat.cache_name import cache_name, cache_of, with_cache_as
from segmo.compat.capturing import Capturing
from segmo.compat.collector import collector_spared
from segmo.compat.dynamo import BackendCompilerFailed, FailOnRecompileLimitHit, trace_again, why_left_alone
from segmo.compat.flags import RECOMPILE_LIMIT, hold_sizes
from segmo.compat.joining import Asked
from segmo.compat.layer_reading import stamped
from segmo.compiler.capture import called
from segmo.compiler.left import leave_prefill
from segmo.compiler.ran import graphs_noted
from segmo.errors import CompileError, SegMoError
from segmo.options import Options
from segmo.passes.pipeline import build_pipeline
from segmo.passes.reasons import Miss
from segmo.passes.shard_segments import spreads_cache
from segmo.runtime.cuts import call_and_mark
from segmo.runtime.distributed.session import check_dealt, going_on, memory_explained, words_known
from segmo.runtime.external import warn_of_scores
from segmo.runtime.host import made_here
from segmo.runtime.rest import surely_inductor
from segmo.runtime.videos import frames_known
from segmo.upstream.encoder import FrameEncoder, encoding
from segmo.upstream.prompt import prompt_known

_NO_VIDEO: ContextVar[bool] = ContextVar("segmo_no_video", default=False)


@contextmanager
def without_video() -> Iterator[None]:
    """Inside the block, in this thread, calls hold no video, and no cache that was cut: there is nothing to rewrite.

    They run as the model was loaded, unless inductor is sure to make something of their graph. Dynamo's seconds for it
    would buy nothing, and for their few rows inductor's on a CPU would not either.
    """
    token = _NO_VIDEO.set(True)
    try:
        yield
    finally:
        _NO_VIDEO.reset(token)


class Call:
    """Stands in the place of a model's forward: every call of what was compiled comes through here.

    Attributes:
        model: that is called.
        original: its forward.
        compiled: the same, as Dynamo runs it.
        options: that it was compiled with.
        start_afresh: has its graphs made anew.
        attention: the implementations that the model was loaded with.
        hooks: accelerate's, where the model has any.
        shards: of weights that are sharded.
        capturing: transformers' hooks for what a call wants collected.
        notes: for the report of each graph.
        encoder: what chooses frames before the vision encoder; None where every frame is encoded.
        reader: how Dynamo reads the decoder's layers.
    """

    def __init__(self, model: Any, original: Callable[..., Any], options: Options, asked: Asked) -> None:
        self.model = model
        self.original = original
        self.compiled = asked.plain(original)
        self.options = options
        self.start_afresh = asked.start_afresh
        self.sizes = Sizes() if asked.dynamic is None else nullcontext
        self.attention = attention_of(model)
        self.hooks = Hooks(model)
        self.shards = Shards(model)
        self.capturing = Capturing(model)
        self.encoder = FrameEncoder(model, options) if options.frames < 1 else None
        from segmo.runtime.one_layer import reader  # imports transformers

        self.reader = reader()
        loaded = self.attention.decoder
        self.notes = (f"attention was loaded as {loaded}; the decoder uses sdpa while this runs",) if loaded else ()
        self.__signature__ = inspect.signature(model.forward)
        self.cache_name = cache_name(model)
        # Where a function around the model is compiled too, this is not inlined there: it compiles for itself.
        self.run = torch.compiler.disable(self._run)  # type: ignore[no-untyped-call]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own forward."""
        return self.run(*args, **kwargs)

    def __reduce__(self) -> Any:
        raise CompileError(
            "a compiled forward cannot be copied or pickled: copy the model before model.forward = torch.compile(...), "
            "or compile it by segmo.compile(model), which goes with its copies"
        )

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if _NO_VIDEO.get() and not surely_inductor(self.options, on_gpu=self.model.device.type != "cpu"):
            return self.original(*args, **kwargs)
        with self.shards.gathered() as gathered:
            return self._rewritten(*args, **kwargs) if gathered else self.original(*args, **kwargs)

    def _rewritten(self, *args: Any, **kwargs: Any) -> Any:
        named = with_cache_as(self.cache_name, by_name(self.model, args, kwargs))
        miss = no_video(self.model, named)
        if miss is not None:
            if self.encoder is not None:
                refuse_gaps(named, miss)
            leave_prefill(self.model, self.options, miss)
            return self.original(*args, **kwargs)
        warn_of_scores(self.options.scorer)
        with called(self.model, self.notes), plain_errors(), memory_explained(self.options.ranks):
            inputs = self.before(named)
            warn_if_too_long = look_at_length(self.model, inputs)
            given = {**inputs, **named}
            frames, copies = frames_of(self.model, given)
            videos = frames_known(frames, cells_of(given), copies)
            cache = going_on(cache_of(inputs), self.options.ranks, self.spreads_cache)
            with self.sizes(inputs), words_known(inputs.get("input_ids")), videos, cache:
                result = self.hooks.call(self._marked, inputs)
            warn_if_too_long()
            self.after(inputs, result)
            return result

    def spreads_cache(self) -> bool:
        """Whether what is compiled attends to a cache that is spread over the ranks."""
        return spreads_cache(build_pipeline(self.options))

    def _marked(self, **inputs: Any) -> Any:
        try:
            with collector_spared(), stamped(self.reader), graphs_noted() as graphs:
                result = call_and_mark(self.compiled, inputs)
        except BaseException as error:
            if trace_again(error):
                self.start_afresh()
            raise
        if not any(graphs) and pictures_of(inputs):
            self.left_alone(inputs, some=bool(graphs))
        return result

    def left_alone(self, inputs: dict[str, Any], *, some: bool) -> None:
        """Says that torch.compile ran a prompt as it was; its decoder alone, where it compiled ``some`` of the rest."""
        miss = (
            Miss.of("decoder-outside", why_outside(self.model)) if some else Miss.of("not-compiled", why_left_alone())
        )
        if self.encoder is not None:
            refuse_gaps(inputs, miss)
        leave_prefill(self.model, self.options, miss)

    @made_here()
    def before(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The steps before the graph: the arguments that it is called with.

        Raises:
            CompileError: attention weights are asked for, which the model as it was loaded would give.
        """
        if inputs.get("output_attentions") and self.attention.decoder is not None:
            raise CompileError(
                f"sdpa gives no attention weights; the decoder was loaded with {self.attention.decoder} and uses sdpa "
                "while it is compiled. Leave output_attentions out, or segmo.uncompile(model) first"
            )
        self.capturing.prepare(inputs)
        prompt = prompt_known(inputs) if self.encoder is None else encoding(self.encoder, inputs)
        with prompt:
            return joined(encoded(self.model, inputs))

    def after(self, inputs: dict[str, Any], result: Any) -> None:
        """The steps after the graph."""
        del result
        check_dealt(inputs, self.options.ranks)


def why_outside(model: Any) -> str:
    """Why the decoder ran outside of the graphs, as far as it can be told from the model."""
    newest = "is_activation_checkpointing"  # the other one warns there
    if model.training and getattr(model, newest if hasattr(model, newest) else "is_gradient_checkpointing", False):
        return "gradient checkpointing is on, and the model in training mode"
    return 'TORCH_LOGS="graph_breaks" says why'


class Sizes:
    """``dynamic=None``: the first call is compiled for its own sizes, and the first of other sizes for all of them."""

    def __init__(self) -> None:
        self.first: tuple[Any, ...] | None = None

    @contextmanager
    def __call__(self, inputs: dict[str, Any]) -> Iterator[None]:
        found = tuple((name, value.shape) for name, value in inputs.items() if isinstance(value, torch.Tensor))
        self.first = self.first or found
        undo = hold_sizes(fixed=found == self.first)
        try:
            yield
        finally:
            undo()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Lets SegMo's errors out as they are: Dynamo's wrapping hides what was wrong behind how it was found.

    Raises:
        SegMoError: that the backend raised, or that there is no room for a further graph.
    """
    try:
        yield
    except BackendCompilerFailed as failure:
        if isinstance(failure.inner_exception, SegMoError):
            raise failure.inner_exception from None
        raise
    except FailOnRecompileLimitHit as failure:
        raise CompileError(
            "this model was compiled for as many different calls as Dynamo has room for "
            f"(torch._dynamo.config.recompile_limit, {RECOMPILE_LIMIT} or more here). Compile it with dynamic=True, "
            'and one graph serves all lengths of video; or raise the limit. TORCH_LOGS="recompiles" says what differed'
        ) from failure
