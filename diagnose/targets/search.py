"""Walks from a path to the function at its end.

Everything is read from the dictionaries of modules, classes and instances; see the package.
"""

from __future__ import annotations

import _warnings
import builtins
import enum
import faulthandler
import functools
import gc
import re
import sys
import unicodedata
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any

from diagnose.errors import (
    TargetError,
    TargetKindError,
    TargetNotFoundError,
    TargetNotImportedError,
)
from diagnose.introspection import (
    MISSING,
    entry_of,
    is_a,
    namespace_of,
    read_flags,
    read_mro,
    read_name,
)
from diagnose.originals import seen_through
from diagnose.targets.hints import (
    CHECK_SPELLING,
    advice_with_names,
    attribute_names,
    class_error,
    find_by_last_name,
    find_elsewhere,
    functions_in,
    join_path,
    module_error,
    name_with_kind,
    near_misses,
    submodule_names,
    there_is,
)
from diagnose.targets.importing import (
    ask_module,
    find_unimported,
    import_module,
    is_incomplete,
    is_script,
)
from diagnose.targets.lookup import Step, class_name, look_up, read_wrapped, unwrapped
from diagnose.wording import described, did_you_mean, shown

__all__ = ["Target", "TargetKind", "find", "innermost", "module_names", "resolve"]

_MAX_PATH_CHARS = 1000
_MAX_SHOWN_CHARS = 200
_MAX_WRAPPERS = 1000
_OTHER_JOINTS = re.compile(r"(\.py)?:+|/")  # as pytest, entry points and files have them

_ACCESSORS = {name: property.__dict__[name].__get__ for name in ("fget", "fset", "fdel")}

_LOOKERS = {
    id(getattr(sys.modules[module], name)): f"{module}.{name}"
    for module, names in {
        "builtins": "locals globals vars dir eval exec compile breakpoint __build_class__",
        "sys": "_getframe _getframemodulename breakpointhook getrefcount settrace setprofile",
        _warnings.__name__: "warn",
        gc.__name__: "get_referrers",
        faulthandler.__name__: "dump_traceback",
    }.items()
    for name in names.split()
    if hasattr(sys.modules[module], name)
}
"""C functions that look at the frame that calls them, or at who holds their arguments. There would
be a stand-in in between, and what they give or do another thing."""

_TPFLAGS_IMMUTABLETYPE = 1 << 8  # all static types have it too


class TargetKind(enum.Enum):
    """What stands at the end of a path, and so how a probe gets hold of it."""

    FUNCTION = "function"
    METHOD = "method"
    STATIC_METHOD = "static method"
    CLASS_METHOD = "class method"
    PROPERTY = "property"
    REFERENCE = "reference"
    """Callable, but without Python code: the attribute itself must be replaced."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Something that a probe can watch, and where it was found.

    Attributes:
        path: the path as it was asked for.
        owner: the object that really holds the attribute: a module, the class of the MRO
            that defines it, or an instance. For `TargetKind.REFERENCE`,
            ``setattr(owner, name, replacement)`` replaces it.
        name: the attribute's name in the owner (private names as Python mangles them).
        kind: how the function is called.
        found: the raw object in the owner, not bound: a function, a ``staticmethod``
            object, a property, and so on.
        function: the function whose code a probe swaps; None for `TargetKind.REFERENCE`.
        warnings: what a user may not expect of this target, one sentence each.
        inner: the innermost function behind its decorators (see `innermost`), unless there are
            none, or the path itself ends in ``__wrapped__``.
        decorators: how many of them `inner` is behind.
    """

    path: str
    owner: object
    name: str
    kind: TargetKind
    found: object
    function: FunctionType | None
    warnings: tuple[str, ...] = ()
    inner: Any = None
    decorators: int = 0

    @property
    def body(self) -> Any:
        """The function that was written: behind decorators `inner`; None where no function is."""
        return self.function if self.inner is None else self.inner

    @property
    def subject(self) -> object:
        """The very object that is called; another one under the same path is another target."""
        return seen_through(self.found) if self.function is None else self.function

    @property
    def location(self) -> str | None:
        """File and first line of the function that was written; None where none was."""
        code = None if self.body is None else self.body.__code__
        return None if code is None else f"{code.co_filename}:{code.co_firstlineno}"

    def wraps(self, subject: object) -> bool:
        """Whether a chain of ``__wrapped__`` leads from here to ``subject``.

        That is what decorators leave behind that use `functools.wraps` or wrapt.
        """
        return any(found is subject for found in _behind(unwrapped(self.subject)))


def innermost(function: object) -> tuple[FunctionType | None, int]:
    """The innermost function behind ``__wrapped__``, and how many decorators it is behind.

    Nothing of the program is run. None for what is no decorator's work, or leads in a circle. What
    stands further in and is no function does not count.
    """
    inner, count = None, 0
    for number, found in enumerate(_behind(function), 1):
        if type(found) is FunctionType:
            inner, count = found, number
    return inner, count


def _behind(wrapper: object) -> list[object]:
    """What a chain of ``__wrapped__`` leads to, the outermost first; nothing if it never ends."""
    found: list[object] = []
    seen = {id(wrapper)}
    behind = wrapper
    while (behind := _inside(read_wrapped(behind))) is not MISSING:
        if id(behind) in seen or len(found) >= _MAX_WRAPPERS:
            return []
        seen.add(id(behind))
        found.append(behind)
    return found


def _inside(value: object) -> object:
    """The function inside any descriptor that a class may hold; any other value as it is."""
    if is_a(value, property):
        value = _ACCESSORS["fget"](value)
    elif is_a(value, functools.cached_property):
        value = entry_of(namespace_of(value), "func")
    return unwrapped(value)


def resolve(path: str, *, import_modules: bool) -> Target:
    """Find what ``path`` leads to.

    The module is the longest prefix that is one; a shorter one counts where that leads
    further (a package whose attribute has the name of a submodule, as in ``tqdm.tqdm``).
    Thread-safe; keeps no state. A path that leads somewhere costs microseconds, an error
    with its near misses can cost some 10 ms.

    Args:
        path: module, attribute and, where needed, further attributes, joined by dots:
            ``"shop.cart.Cart.checkout"``. ``Class.prop.fset`` is a property's setter,
            ``function.__wrapped__`` what a decorator wraps, ``Class.__private`` is found
            under its mangled name.
        import_modules: import what is not imported yet and ask modules' ``__getattr__``.
            Without it no module is imported and none of the program's code runs (finders
            in ``sys.meta_path`` are asked whether a module exists).

    Returns:
        The target; for the same path and program always an equal one.

    Raises:
        TargetNotImportedError: the module exists but is not imported, or is only now being
            imported; ``name`` is the module to wait for.
        TargetNotFoundError: a part of the path does not exist (``target-not-found``,
            ``module-not-found``), or importing it failed (``module-import-failed``).
        TargetKindError: it leads to a module, a class, a value that can't be called, or to
            a method of an immutable type (``target-is-module``, ``target-is-class``,
            ``target-kind``, ``target-immutable``).
        TargetError: it is no path at all (``target-syntax``).

    Example:
        >>> target = resolve("textwrap.TextWrapper.wrap", import_modules=True)
        >>> target.kind
        <TargetKind.METHOD: 'method'>
    """
    text, parts = split_path(path)
    try:
        return _Search(text, parts, import_modules=import_modules).run()
    except TargetError:
        raise
    except Exception as exc:
        # Whatever stands in sys.modules may be hostile; a poll must survive it.
        message = f"target {shown(text, _MAX_SHOWN_CHARS)} could not be looked up: {described(exc)}"
        raise TargetError(message) from exc


def find(path: str) -> Target | None:
    """Find what ``path`` leads to just now; None where a probe can't be put.

    For those who ask often: the look-up of `resolve` among what is imported, without the
    search for what else may have been meant. Never raises, asks no finder, runs nothing of
    the program. A module that is still being executed counts with what it has so far.
    """
    try:
        text, parts = split_path(path)
        search = _Search(text, parts, import_modules=False, with_advice=False)
        return search.among_loaded()
    except Exception:  # noqa: BLE001 - `resolve` says what is wrong
        return None


def module_names(path: str) -> tuple[str, ...]:
    """The modules that ``path`` may lead through: all of its proper prefixes.

    Raises:
        TargetError: it is no path at all (``target-syntax``).
    """
    _, parts = split_path(path)
    return tuple(".".join(parts[:count]) for count in range(1, len(parts)))


def split_path(path: object) -> tuple[str, list[str]]:
    """The path as plain text, and its parts as Python's compiler would spell them.

    Raises:
        TargetError: it is no path at all (``target-syntax``).
    """
    example = "such as 'shop.cart.Cart.checkout'"
    if not issubclass(type(path), str):
        plain = type(path) in (int, float, bool, bytes, type(None))
        given = (
            f"{shown(path, _MAX_SHOWN_CHARS)} ({read_name(type(path))})"
            if plain
            else read_name(type(path))
        )
        raise TargetError(f"a target is text {example}, not {given}", code="target-syntax")
    text = str.__str__(path)  # a subclass may override everything else
    # The compiler stores identifiers in NFKC form (language reference, section 2.3).
    parts = unicodedata.normalize("NFKC", text[: _MAX_PATH_CHARS + 1]).split(".")
    wrong = [part for part in parts if not part.isidentifier()]
    if not text:
        problem = "is empty"
    elif len(text) > _MAX_PATH_CHARS:
        problem = f"has more than {_MAX_PATH_CHARS} characters"
    elif "" in parts:
        problem = "has an empty part"
    elif wrong:
        problem = f"has a part that is no name: {shown(wrong[0], _MAX_SHOWN_CHARS)}"
    else:
        return text, parts
    meant = _OTHER_JOINTS.sub(".", text.removesuffix("()").removesuffix(".py"))
    if len(meant) <= _MAX_PATH_CHARS and all(map(str.isidentifier, meant.split("."))):
        example = f"such as {meant!r}"
    message = f"target {shown(text, _MAX_SHOWN_CHARS)} {problem}; join module and attributes by dots, {example}"
    raise TargetError(message, code="target-syntax")


class _Search:
    """The look-up of one path."""

    def __init__(
        self, path: str, parts: list[str], *, import_modules: bool, with_advice: bool = True
    ) -> None:
        self.path = path
        self.parts = parts
        self.import_modules = import_modules
        self.with_advice = with_advice

    def run(self) -> Target:
        has_waited = False
        while True:
            loaded = self._count_loaded()
            missing: TargetError | None = None
            try:
                if (target := self.among_loaded(loaded)) is not None:
                    return target
            except (TargetNotFoundError, TargetNotImportedError) as error:
                missing = error
            if loaded == len(self.parts):
                label = self._prefix(loaded)
                raise module_error(label, sys.modules.get(label))
            if not self.import_modules:
                raise self._not_imported(loaded) or self._not_found(loaded, missing)
            if isinstance(missing, TargetNotImportedError) and not has_waited:
                # Another thread is importing it: importing it here too waits for that.
                import_module(self._prefix(loaded))
                has_waited = True
            elif not import_module(self._prefix(loaded + 1)) or self._count_loaded() <= loaded:
                raise self._not_found(loaded, missing)

    def among_loaded(self, loaded: int | None = None) -> Target | None:
        """Walk from the longest prefix that is an imported module, or a shorter one."""
        loaded = self._count_loaded() if loaded is None else loaded
        missing: TargetError | None = None
        for count in range(min(loaded, len(self.parts) - 1), 0, -1):
            label = self._prefix(count)
            module = sys.modules.get(label)
            if module is None:
                continue
            try:
                return self._walk(label, module, self.parts[count:])
            except (TargetNotFoundError, TargetNotImportedError) as error:
                missing = missing or error
        if missing is not None:
            raise missing
        return None

    def _prefix(self, count: int) -> str:
        return ".".join(self.parts[:count])

    def _count_loaded(self) -> int:
        counts = range(len(self.parts), 0, -1)
        return next((n for n in counts if sys.modules.get(self._prefix(n)) is not None), 0)

    def _not_imported(self, loaded: int) -> TargetError | None:
        """The error for a path that goes on in a module which could be imported."""
        found = find_unimported(self.parts, loaded)
        if found is None:
            return None
        name, file = found
        message = (
            f"module {name!r} is not imported in this process yet; the probe is applied when it is"
        )
        if name == self._prefix(len(self.parts)):
            message += " (the path names a module: add the name of a function in it)"
        elif is_script(file):
            here = f"__main__{self.path[len(name) :]}"
            message += f"; it runs as the program's script, under the name {here!r}"
        return _waiting_for(name, message)

    def _not_found(self, loaded: int, missing: TargetError | None) -> TargetError:
        name = self._prefix(loaded + 1)
        if name in sys.modules:
            message = f"module {name!r} is blocked: sys.modules has None under its name"
            return TargetNotFoundError(message, code="module-not-found")
        return missing or self._no_module(name, loaded)

    def _no_module(self, name: str, loaded: int) -> TargetError:
        if not loaded and self.parts[0] in vars(builtins):
            # "str.join" and "len" are no paths, but it is clear what they mean.
            try:
                self._walk("builtins", builtins, self.parts)
            except TargetKindError as error:
                return error
            except TargetError:
                pass
            else:
                message = f"no module {name!r}; did you mean 'builtins.{self.path}'?"
                return TargetNotFoundError(message, code="module-not-found")
        parent = self._prefix(loaded)
        siblings = submodule_names(parent, sys.modules.get(parent))
        near = [join_path(parent, each) for each in near_misses(self.parts[loaded], siblings)]
        hints = did_you_mean(near) or self._elsewhere(parent, self.parts[loaded:])
        message = f"no module {name!r}{hints or CHECK_SPELLING}"
        return TargetNotFoundError(message, code="module-not-found")

    def _elsewhere(self, label: str, names: list[str]) -> str:
        """Say where the function may be, as its path has no near misses."""
        if label:
            return there_is(find_by_last_name(self.parts[0], label, names))
        # No package tells where to look. A single name would be found in too many places.
        for start in range(max(1, len(names) - 1)):
            if places := find_elsewhere(None, label, names[start:]):
                return there_is(places)
        return ""

    def _walk(self, label: str, module: object, names: list[str]) -> Target:
        holder = module
        for index, name in enumerate(names):
            is_module = holder is module or is_a(holder, ModuleType)
            step = look_up(holder, name)
            if step is None and is_module and self.import_modules:
                step = ask_module(label, holder, name)
            if step is None:
                raise self._no_attribute(label, holder, names[index:], is_module=is_module)
            rest = names[index + 1 :]
            here = f"{label}.{name}"
            if not rest:
                return self._classify(step, holder, here)
            if is_a(step.value, property):
                if rest[0] not in _ACCESSORS:
                    message = f"{here!r} is a property: what it gives is only known when it runs"
                    raise TargetKindError(f"{message}; probe it, or its 'fget', 'fset' or 'fdel'")
                if len(rest) == 1:
                    return self._property(step, holder, here, rest[0])
            holder, label = unwrapped(step.value), here
        raise module_error(label, module)

    def _no_attribute(
        self, label: str, holder: object, names: list[str], *, is_module: bool
    ) -> TargetError:
        name = names[0]
        if not self.with_advice:
            return TargetNotFoundError(f"{label!r} has no {name!r}")
        if is_module and is_incomplete(holder):
            then = "the probe is applied when it is complete"
            if self.import_modules:
                then = "attach the probe when it is complete"
            message = f"module {label!r} is still being imported and has no {name!r} yet; {then}"
            return _waiting_for(label, message)
        modules = set(submodule_names(label, holder)) if is_module else set()
        near = near_misses(name, modules.union(attribute_names(holder)))
        if modules and len(names) > 1 and (not near or near[0] in modules):
            hints = did_you_mean([join_path(label, each) for each in near])
            hints = hints or self._elsewhere(label, names) or CHECK_SPELLING
            message = f"no module {join_path(label, name)!r}{hints}"
            return TargetNotFoundError(message, code="module-not-found")
        hints = did_you_mean(near)
        elsewhere = find_elsewhere(self.parts[0], label, names) if is_module else []
        if elsewhere:
            hints += there_is(elsewhere)
        elif (len(names) == 1 or not near) and (places := self._elsewhere(label, names)):
            hints += places
        elif is_module and entry_of(namespace_of(holder), "__getattr__") is not MISSING:
            hints += "; its __getattr__ may make it, which a spec never runs"
        message = f"{name_with_kind(holder, label)} has no {name!r}{hints or CHECK_SPELLING}"
        return TargetNotFoundError(message)

    def _classify(self, step: Step, holder: object, here: str) -> Target:
        value = step.value
        function = unwrapped(value)
        if type(function) is FunctionType:
            return self._target(step, holder, here, _method_kind(step), function)
        if is_a(value, staticmethod) or is_a(value, classmethod):
            # A stand-in for a staticmethod or classmethod object would bind in another way.
            has_code = type(entry_of(namespace_of(function), "__wrapped__")) is FunctionType
            advice = f"'{here}.__wrapped__'" if has_code else "the Python function that calls it"
            what = f"a {read_name(type(value))} around a {read_name(type(function))}"
            raise TargetKindError(f"{here!r} is {what}, without code of its own; probe {advice}")
        if is_a(value, property):
            return self._property(step, holder, here, "fget")
        if is_a(value, functools.cached_property):
            inner = entry_of(namespace_of(value), "func")
            if type(inner) is FunctionType:
                return self._target(step, holder, here, TargetKind.PROPERTY, inner)
        if is_a(value, ModuleType):
            raise module_error(here, value)
        if is_a(value, type):
            raise class_error(here, value)
        if callable(value) or is_a(value, functools.partialmethod):
            return self._reference(step, holder, here)
        inside = [f"{here}.{name}" for name in functions_in(value)]
        advice = advice_with_names("probe a function in it", inside) or "name a function instead"
        kind = read_name(type(value))
        raise TargetKindError(f"{here!r} is a {kind}, which can't be called; {advice}")

    def _property(self, step: Step, holder: object, here: str, accessor: str) -> Target:
        functions = {name: read(step.value) for name, read in _ACCESSORS.items()}
        function = functions.pop(accessor)
        if type(function) is FunctionType:
            return self._target(step, holder, here, TargetKind.PROPERTY, function)
        others = [f"{here}.{each}" for each, it in functions.items() if type(it) is FunctionType]
        advice = advice_with_names("it has", others) or "probe a function that uses it"
        if function is None:
            raise TargetNotFoundError(f"property {here!r} has no {accessor!r}; {advice}")
        kind = read_name(type(function))
        message = f"the {accessor!r} of property {here!r} is a {kind}, no Python function; {advice}"
        raise TargetKindError(message)

    def _reference(self, step: Step, holder: object, here: str) -> Target:
        owner = step.owner
        advice = "probe the Python function that calls it"
        if id(step.value) in _LOOKERS:
            name = _LOOKERS[id(step.value)]
            why = f"is {name}, which looks at its caller: with a probe it would find another one"
            raise TargetKindError(f"{here!r} {why}; {advice}", code="target-looks-at-caller")
        if is_a(owner, type):
            if read_flags(owner) & _TPFLAGS_IMMUTABLETYPE:
                source = f"{'is inherited' if holder is not owner else 'is'} from"
                why = f"{source} {class_name(owner)!r}, a type whose attributes can't be replaced"
                raise TargetKindError(f"{here!r} {why}; {advice}", code="target-immutable")
        elif not is_a(owner, ModuleType) and entry_of(namespace_of(owner), step.name) is MISSING:
            why = f"stands in a {read_name(type(owner))} where it can't be replaced"
            raise TargetKindError(f"{here!r} {why}; {advice}", code="target-immutable")
        return self._target(step, holder, here, TargetKind.REFERENCE, None)

    def _target(
        self, step: Step, holder: object, here: str, kind: TargetKind, function: object
    ) -> Target:
        warnings = []
        owner, name, value = step
        if is_a(owner, type) and owner is not holder:
            origin = class_name(owner)
            if not is_a(holder, type):
                why = f"is defined by class {origin}: calls on any of its instances are seen"
            elif any(each is owner for each in read_mro(holder)):
                why = f"is inherited from {origin}: calls through any subclass are seen"
            else:
                why = f"is inherited from metaclass {origin}: calls through any class are seen"
            warnings.append(f"{here} {why}")
        if type(value) is MethodType and function is not None:
            bound = value.__self__
            cls = class_name(bound if is_a(bound, type) else type(bound))
            warnings.append(f"{here} is a bound method of {cls}: calls on others are seen too")
        if is_a(owner, ModuleType):
            if entry_of(namespace_of(owner), name) is MISSING:
                warnings.append(f"{here} is made by __getattr__: what it gives next is not seen")
            file = entry_of(namespace_of(owner), "__file__")
            if is_script(file) and owner is not sys.modules.get("__main__"):
                warnings.append(f"{here} also exists in __main__: calls there are not seen")
        code_owner = function if type(function) is FunctionType else None
        inner, decorators = None, 0
        if name != "__wrapped__":  # who walks through decorators one by one means where they stop
            inner, decorators = innermost(seen_through(value) if code_owner is None else function)
        return Target(
            self.path, owner, name, kind, value, code_owner, tuple(warnings), inner, decorators
        )


def classify(step: Step, holder: object, path: str) -> Target:
    """What `resolve` makes of an attribute that was found.

    Raises:
        TargetError: no probe can be put there; the message is without advice.
    """
    search = _Search(path, [], import_modules=False, with_advice=False)
    return search._classify(step, holder, path)


def _method_kind(step: Step) -> TargetKind:
    if is_a(step.value, staticmethod):
        return TargetKind.STATIC_METHOD
    if is_a(step.value, classmethod):
        return TargetKind.CLASS_METHOD
    is_method = is_a(step.owner, type) or type(step.value) is MethodType
    return TargetKind.METHOD if is_method else TargetKind.FUNCTION


def _waiting_for(module_name: str, message: str) -> TargetNotImportedError:
    error = TargetNotImportedError(message)
    error.name = module_name
    return error
