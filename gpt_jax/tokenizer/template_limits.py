"""Jinja's sandbox with limits of time and size, since chat templates come from other people.

The sandbox limits what a template can access. Here, each loop, macro, call, filter and operator
also checks the clock. Operations that would make a text longer than `MOST_CHARACTERS` are rejected
before they run.
"""

import contextlib
import functools
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
import jinja2.runtime
import jinja2.sandbox
import jinja2.visitor
from jinja2 import nodes

MOST_CHARACTERS = 1 << 24  # per rendering, and per text in it
SECONDS = 10.0  # per rendering
_MOST_COUNT = 10**6  # largest number as an argument, for example a width
_MOST_BITS = 1 << 12  # of an integer
_TICK, _CONCAT = '_tick', '_concat'
# Functions that repeat one argument as often as another one says.
_MULTIPLYING = re.compile(
    r'(sync_)?(do_)?(replace|join|indent|expandtabs|wordwrap|center|ljust|rjust|zfill|translate)'
)
_WRITING = re.compile(r'(sync_)?(do_)?(_to_json|join|string|soft_str|pprint|format|urlencode)')
_WIDTH = re.compile(r'\d{5,}')


class _Budget(threading.local):
    """The remaining time and characters of this thread's rendering; infinite outside of one."""

    deadline = math.inf
    characters = math.inf


_budget = _Budget()


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Limits renderings inside the context, on this thread."""
    _budget.deadline, _budget.characters = time.monotonic() + SECONDS, MOST_CHARACTERS
    try:
        yield
    finally:
        _budget.deadline = _budget.characters = math.inf


class LimitedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox of templates; see the module."""

    # Intercept all operators, so that none is evaluated when a template is compiled.
    intercepted_binops = frozenset(jinja2.sandbox.SandboxedEnvironment.default_binop_table)

    def __init__(self, **options: Any):
        super().__init__(finalize=_write, **options)
        del self.globals['lipsum']
        for name, function in self.filters.items():
            self.add_filter(name, function)
        self.filters |= {_TICK: _tick_filter, _CONCAT: _concat}

    def add_filter(self, name: str, function: Callable) -> None:
        """Adds a filter whose arguments and result are limited."""

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            _check_arguments(function, [*args, *kwargs.values()])
            return _checked(function(*args, **kwargs))

        self.filters[name] = limited

    def limit(self, tree: nodes.Template) -> nodes.Template:
        """Adds limits to the loops, macros and concatenations of a parsed template."""
        tree = _Limiter().visit(tree)
        tree.set_environment(self)
        return tree

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a function for a template, with limited arguments and result."""
        if not isinstance(__obj, jinja2.runtime.Macro):
            # The sandbox wraps str.format.
            method = getattr(__obj, '__wrapped__', __obj)
            text = getattr(method, '__self__', None)
            _check_arguments(method, [text, *args, *kwargs.values()])
        return _checked(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Computes `left operator right`, unless the result would be too large."""
        if operator == '**' and _bits(left) * abs(right) > _MOST_BITS:
            raise _too_large()
        if operator == '*':
            if _bits(left) + _bits(right) > _MOST_BITS:
                raise _too_large()
            for one, other in ((left, right), (right, left)):
                if isinstance(one, int) and _length(other) * max(one, 0) > MOST_CHARACTERS:
                    raise _too_large()
        if operator == '+' and _length(left) + _length(right) > MOST_CHARACTERS:
            raise _too_large()
        if operator == '%' and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        return _checked(super().call_binop(context, operator, left, right))


class _Limiter(jinja2.visitor.NodeTransformer):
    """A transformer that makes loops and macros check the clock, and limits `~`."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Macro:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, _CONCAT, [], [], None, None, lineno=node.lineno)

    def _ticking(self, node: Any) -> Any:
        self.generic_visit(node)
        nothing = nodes.Const(None, lineno=node.lineno)
        tick = nodes.Filter(nothing, _TICK, [], [], None, None, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        return node


@jinja2.pass_context  # so that it is not evaluated when the template is compiled
def _tick_filter(context: Any, value: None) -> None:
    del context, value
    _tick()


def _tick() -> None:
    if time.monotonic() > _budget.deadline:
        raise jinja2.TemplateError(f'it takes more than {SECONDS:.0f} seconds')


def _concat(values: list[Any]) -> str:
    _check_size(values)
    return ''.join(map(str, values))


def _write(value: Any) -> Any:
    """Counts the characters that a template writes."""
    if not isinstance(value, str):
        _check_size(value)
        value = str(value)
    _budget.characters -= len(value)
    if _budget.characters < 0:
        raise _too_large()
    return value


def _checked(value: Any) -> Any:
    _tick()
    if _length(value) > MOST_CHARACTERS:
        raise _too_large()
    return value


def _check_arguments(function: Any, values: list[Any]) -> None:
    _tick()
    name = getattr(function, '__name__', '')
    for value in values:
        if isinstance(value, int) and abs(value) > _MOST_COUNT:
            raise jinja2.TemplateError(f'{name} is given the number {str(value)[:20]}')
    if name == '_to_json' and any(type(value) is int and value > 100 for value in values):
        raise jinja2.TemplateError('tojson is given an indent of more than 100')
    if _MULTIPLYING.fullmatch(name):
        sizes = [value if isinstance(value, int) else _length(value) for value in values]
        if math.prod(max(1, size) for size in sizes) > 16 * MOST_CHARACTERS:
            raise _too_large()
    if _WRITING.fullmatch(name):
        _check_size(values)
    if name in ('format', 'do_format', 'format_map'):
        text = next((value for value in values if isinstance(value, str)), '')
        _check_format(text, values)


def _check_format(text: str, values: Iterable[Any]) -> None:
    wide = any(isinstance(value, int) and abs(value) > _MOST_COUNT for value in values)
    if wide and '*' in text or _WIDTH.search(text):
        raise _too_large()


def _check_size(value: Any) -> None:
    """Raises TemplateError if a value, including nested lists, is too long as text."""
    size, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        size += 1 + _length(value)
        if size > MOST_CHARACTERS:
            raise _too_large()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _too_large() -> jinja2.TemplateError:
    return jinja2.TemplateError(f'it makes a text of more than {MOST_CHARACTERS} characters')
