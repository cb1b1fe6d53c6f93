"""Where SegMo joins ``torch.compile``: after the backend was looked up, before the user gets what was compiled.

Looking a backend up imports it. Then ``torch.compile`` makes a context, which knows the backend and what else was
asked for, and calls it with the model or function: the result is what the user gets. :func:`join` stands at that call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from torch._dynamo import eval_frame
from torch._dynamo.eval_frame import OptimizeContext, innermost_backend

from segmo.compat.dynamo import switched_off

WHAT = "torch._dynamo.eval_frame.OptimizeContext.__call__"
VERSIONS = "torch 2.11 to 2.15"


Hold = Callable[[], Callable[[], None]]


@dataclass(frozen=True)
class Asked:
    """One use of ``torch.compile``, or of ``Module.compile``, which compiles the module's ``_call_impl``.

    Attributes:
        target: what is to be compiled: a module, a function or a method.
        options, mode: as they were given.
        context: torch's own.
        plain: compiles a function as torch does, with what was asked for.
    """

    target: Any
    options: dict[str, Any] | None
    mode: str | None
    context: Any
    plain: Callable[[Any], Any]

    def hold(self, hold: Hold) -> None:
        """``hold`` runs before each call of what is compiled here, in any thread; what it returns runs after it."""
        if hold not in self.context.enter_exit_hooks:
            self.context.enter_exit_hooks.append(hold)

    @property
    def dynamic(self) -> bool | None:
        """As it was given."""
        found: bool | None = self.context._dynamic
        return found

    def how(self) -> dict[str, Any]:
        """The arguments of ``torch.compile`` that ask for the same, beside the backend."""
        asked = {"options": self.options, "mode": self.mode, "dynamic": self.dynamic}
        given = {name: value for name, value in asked.items() if value is not None}
        return {**given, "fullgraph": self.context.fullgraph}

    def count_apart(self) -> None:
        """``isolate_recompiles=True``: graphs of other models do not count towards this one's limit of graphs."""
        if getattr(self.context, "_isolate_recompiles_id", 0) < 0:
            self.start_afresh()

    def start_afresh(self) -> None:
        """Leaves behind what this use has compiled, and what Dynamo gave up in it: its next calls are traced anew."""
        numbers = getattr(eval_frame, "_next_isolate_recompiles_id", None)  # torch 2.12 and later
        if numbers is not None:
            self.context._isolate_recompiles_id = next(numbers)


Handler = Callable[[Asked], Any]
_HANDLERS: dict[Any, Handler] = {}


def join(backend: Callable[..., Any], handler: Handler) -> None:
    """From now on, what is compiled with ``backend`` is what ``handler`` returns; other backends see no difference.

    Args:
        backend: the function that torch looks up.
        handler: gets what was asked for; with ``asked.plain(asked.target)`` it does what torch would have done.
    """
    _HANDLERS[backend] = handler
    original: Any = OptimizeContext.__call__
    if getattr(original, "segmo", False):
        return

    def __call__(self: Any, target: Any) -> Any:  # it takes the place of the method of this name
        found = _wrapper(self)
        handler = _HANDLERS.get(getattr(found, "compiler_fn", None))
        if handler is None:
            return original(self, target)
        plain = functools.partial(original, self)
        return handler(Asked(target, found.kwargs.get("options"), found.kwargs.get("mode"), self, plain))

    __call__.segmo = True  # type: ignore[attr-defined]  # joined already
    OptimizeContext.__call__ = __call__  # type: ignore[assignment, method-assign]


def _wrapper(context: Any) -> Any:
    """What ``torch.compile`` made of its arguments for the backend: it has ``compiler_fn`` and ``kwargs``."""
    return innermost_backend(context.callback)


def fits() -> str | None:
    """A context has to lead to its backend and take what is to hold around each call."""

    def backend(gm: Any, inputs: Any) -> Any:
        del inputs
        return gm

    if switched_off():  # there is no context then
        return None
    context = torch._dynamo.optimize(torch._TorchCompileWrapper(backend, None, {"keep": 1}, None))
    if not isinstance(context, OptimizeContext):
        return "torch.compile makes another kind of context"
    found = _wrapper(context)
    if getattr(found, "compiler_fn", None) is not backend or found.kwargs != {"options": {"keep": 1}}:
        return "a context does not lead to its backend"
    if not isinstance(getattr(context, "enter_exit_hooks", None), list):
        return "a context has no enter_exit_hooks"
    return None
