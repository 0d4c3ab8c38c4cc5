"""Functions to bytes, each once: one whose pickle cannot have changed since the last time is not pickled again."""

from __future__ import annotations

import pickle
import sys
import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cloudpickle
from cloudpickle.cloudpickle import _PICKLE_BY_VALUE_MODULES  # the set behind list_registry_pickle_by_value()

from executor.errors import SerializationError
from executor.payloads import Payloads
from worker_agent import bodies, protocol, store

#: Types whose values nobody can change, and which the standard pickler knows.
PLAIN = frozenset({int, float, bool, complex, type(None)})
TEXT = frozenset({str, bytes})


@dataclass(slots=True, eq=False)
class Function:
    """A pickled function, sent to an agent once. ``users`` are the tasks that have not ended (hub thread only)."""

    id: int
    body: protocol.Payload
    users: int = 0


class Functions:
    """The functions of one executor, by content. Any thread."""

    def __init__(self, payloads: Payloads) -> None:
        self._payloads = payloads
        self._by_body: dict[bytes, Function] = {}
        self._large = 0
        self._numbers = iter(range(1, 2**62)).__next__
        self._remembered: dict[int, _Remembered] = {}

    def pack(self, function: Callable[..., Any]) -> Function:
        """The function's pickle, by a number. Raises SerializationError."""
        known = self._remembered.get(id(function))
        if known is not None and known.still_holds(function):
            return known.packed
        packed = self._intern(self._pickle(function))
        self._remember(function, packed)
        return packed

    def _pickle(self, function: Callable[..., Any]) -> bytes:
        try:
            pickled: bytes = cloudpickle.dumps(function, protocol=5)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            text = f"the function {_safe_repr(function)} cannot be pickled: {reason_of(error)}"
            raise SerializationError(text) from error
        return pickled

    def _intern(self, body: bytes) -> Function:
        found = self._by_body.get(body)
        if found is None:
            payload: protocol.Payload = body
            if len(body) > store.INLINE_LIMIT:
                payload = protocol.Stored(*store.store(body, self._payloads.directories))
            found = self._by_body.setdefault(body, Function(self._numbers(), payload))
        return found

    def _remember(self, function: Callable[..., Any], packed: Function) -> None:
        state = _by_reference(function, packed.body) or _state_of(function)
        if state is not None:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[id(function)] = _Remembered(_reference(function), state, packed, _by_value_modules())

    def drop_idle(self, most: int) -> list[int]:
        """Forget the functions that no task uses, if there are more than ``most``; gives their numbers."""
        if len(self._by_body) <= most:
            return []
        idle = [(body, function) for body, function in list(self._by_body.items()) if function.users == 0]
        for body, function in idle:
            del self._by_body[body]
            if isinstance(function.body, protocol.Stored):
                store.remove(function.body.path)
        self._remembered.clear()
        return [function.id for _, function in idle]


#: A namespace, a name, and what it must still be there.
Dependency = tuple[dict[str, Any], str, Any]


def _by_value_modules() -> int:
    return len(_PICKLE_BY_VALUE_MODULES)


def _by_reference(function: Any, body: protocol.Payload) -> list[Dependency] | None:
    """What a pickle depends on that holds no more than the names of a module and of a function in it."""
    if type(function) is not types.FunctionType or function.__module__ in (None, "__main__"):
        return None
    module, name = sys.modules.get(function.__module__), function.__qualname__
    if module is None or vars(module).get(name) is not function or pickle.dumps(function, 5) != body:
        return None
    return [(sys.modules, function.__module__, module), (vars(module), name, function)]


def _reference(function: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(function)
    except TypeError:
        return lambda: function


@dataclass(slots=True)
class _Remembered:
    """A function that was pickled, and all that its pickle was made from."""

    function: Callable[[], Any]
    state: list[Dependency]
    packed: Function
    by_value: int

    def still_holds(self, function: Any) -> bool:
        """Whether pickling it again would give the same bytes."""
        if self.function() is not function or self.by_value != _by_value_modules():
            return False
        return all(names.get(name, _MISSING) is value for names, name, value in self.state)


_MISSING = object()
_MOST_REMEMBERED = 256
#: A function with more dependencies than this is pickled each time.
_MOST_DEPENDENCIES = 64


def _state_of(function: Any) -> list[Dependency] | None:
    """What the pickle of ``function`` depends on: entries of namespaces that must stay as they are.

    None if that cannot be told: closures, attributes, globals of types that can change within.
    """
    if isinstance(function, types.BuiltinFunctionType) and isinstance(function.__self__, types.ModuleType):
        return []
    state: list[Dependency] = []
    return state if _collect(function, state, {id(function)}) else None


def _collect(function: Any, state: list[Dependency], seen: set[int]) -> bool:
    if not _is_simple_function(function):
        return False
    names = function.__globals__
    for name in _global_names(function.__code__):
        value = names.get(name, _MISSING)  # what is not there may come: a builtin, or not yet defined
        if len(state) >= _MOST_DEPENDENCIES or not (value is _MISSING or _is_constant(value, state, seen)):
            return False
        state.append((names, name, value))
    state.append((_CodeOf(function), "", function.__code__))
    return True


class _CodeOf(dict[str, Any]):
    """A namespace that tells the code of a function as long as it is still a simple one."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def get(self, _: str, default: Any = None) -> Any:
        """The code, whatever the name."""
        return self._function.__code__ if _is_simple_function(self._function) else default


def _is_simple_function(function: Any) -> bool:
    return (
        type(function) is types.FunctionType
        and function.__closure__ is None
        and function.__defaults__ is None
        and function.__kwdefaults__ is None
        and not function.__dict__
    )


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _is_constant(value: Any, state: list[Dependency], seen: set[int]) -> bool:
    if type(value) in PLAIN or type(value) in TEXT:
        return True
    if isinstance(value, types.ModuleType):
        return sys.modules.get(value.__name__) is value  # others are pickled with all that is in them
    if isinstance(value, types.BuiltinFunctionType):
        return isinstance(value.__self__, types.ModuleType)
    if type(value) is not types.FunctionType:
        return False
    if id(value) in seen:
        return True
    seen.add(id(value))
    return _collect(value, state, seen)


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as trouble:
        return f"(of type {type(value).__qualname__}, whose repr raises {type(trouble).__name__})"


def reason_of(error: BaseException) -> str:
    """An exception's type and text."""
    return f"{type(error).__name__}: {bodies.safe_str(error)}"
