"""What the source of decoder layers and caches says of them: whose code it is, and which attributes it sets."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

# Whose code may be in a layer. That of others may ask what is not asked here, or change things between two layers.
_KNOWN = ("torch", "transformers", "peft", "abc", "typing")


def is_known_class(kind: type) -> bool:
    """Whether all of a module's class is of packages that are known."""
    classes = [each for each in kind.__mro__ if each is not object]
    functions = (value for each in classes if package(each.__module__) != "torch" for value in functions_of(each))
    return all(package(each.__module__) in _KNOWN for each in classes) and all(map(is_known, functions))


def is_known(function: Any) -> bool:
    """Whether a function is of a package that is known; what it wraps included."""
    while function is not None:
        if package(getattr(function, "__globals__", {}).get("__name__", "")) not in _KNOWN:
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def functions_of(kind: type) -> Iterator[Callable[..., Any]]:
    """A class's own functions."""
    for value in vars(kind).values():
        function = getattr(value, "__func__", getattr(value, "fget", value))  # of a class method, of a property
        if isinstance(function, FunctionType):
            yield function


def package(module: str) -> str:
    """The first part of a module's name."""
    return module.partition(".")[0]


@functools.cache
def sets(code: tuple[Callable[..., Any], ...]) -> set[str]:
    """Names of the attributes that functions set, or set an item of.

    Raises:
        OSError: no file shows their code.
    """
    nodes = [node for function in code for node in ast.walk(tree(function))]
    places = [node.value if isinstance(node, ast.Subscript) else node for node in nodes if _is_stored(node)]
    return {place.attr for place in places if isinstance(place, ast.Attribute)}


def _is_stored(node: ast.AST) -> bool:
    return isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store)


def tree(code: Any) -> ast.Module:
    """The code of a function or a class.

    Raises:
        OSError: no file shows it.
    """
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(code))))
