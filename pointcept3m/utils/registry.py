"""Named classes that a config can build. Knows nothing about what they do."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any


class Registry:
    """A table of classes by name; `build(dict(type="Name", **arguments))` constructs one.

    A mistyped name or argument is an error that lists near matches. A failure inside the constructor keeps
    its own traceback and gains a note that says which entry was being built.
    """

    def __init__(self, name: str):
        self.name = name
        self.classes: dict[str, Callable] = {}

    def __contains__(self, key: str) -> bool:
        return key in self.classes

    def __len__(self) -> int:
        return len(self.classes)

    def register_module(self, name: str | None = None, force: bool = False, module: Callable | None = None) -> Callable:
        """Registers `module` under `name` (its own name by default); without `module`, a decorator.

        Raises: KeyError where the name is taken by another class and `force` is false.
        """

        def register(cls: Callable) -> Callable:
            key = name or cls.__name__
            if key in self.classes and self.classes[key] is not cls and not force:
                raise KeyError(f"{self.name}: {key!r} is already registered by {self.classes[key].__module__}")
            self.classes[key] = cls
            return cls

        return register if module is None else register(module)

    def get(self, key: str) -> Callable:
        """The class registered as `key`. Raises KeyError with near names where there is none."""
        if key in self.classes:
            return self.classes[key]
        raise KeyError(f"{self.name} has no {key!r}; {near_names(key, self.classes)}")

    def build(self, cfg: Mapping[str, Any], /, **defaults: Any) -> Any:
        """Constructs `cfg["type"]` with the other entries of `cfg` (they win over `defaults`) as arguments.

        Raises: TypeError where `cfg` is no mapping with a `type`, or has an argument the class does not take.
        """
        if not isinstance(cfg, Mapping) or "type" not in cfg:
            raise TypeError(f"{self.name}: wanted a dict with a 'type', got {cfg!r}")
        arguments = {**defaults, **cfg}
        kind = arguments.pop("type")
        cls = self.get(kind) if isinstance(kind, str) else kind
        self._check_arguments(cls, kind, arguments)
        try:
            return cls(**arguments)
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"while building {self.name}[{kind!r}]")
            raise

    def _check_arguments(self, cls: Callable, kind: Any, arguments: Mapping[str, Any]) -> None:
        parameters = inspect.signature(cls).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return
        for key in arguments:
            if key not in parameters:
                raise TypeError(f"{self.name}[{kind!r}] takes no argument {key!r}; {near_names(key, parameters)}")


class ShowsArguments:
    """A class whose signature, and its subclasses', holds what `**kwargs` hands on to the classes they extend.

    So a registry finds a mistyped argument of a subclass that does not write them all out.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = full_signature(cls)


def full_signature(cls: type) -> inspect.Signature:
    """The arguments `cls` takes, with those that its `**kwargs` hands on to the classes it extends."""
    found: dict[str, inspect.Parameter] = {}
    for base in (base for base in cls.__mro__ if "__init__" in vars(base)):
        _, *parameters = inspect.signature(base.__init__).parameters.values()  # without self
        inherited = bool(found)
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                kind = parameter.KEYWORD_ONLY if inherited else parameter.kind
                found.setdefault(parameter.name, parameter.replace(kind=kind))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return inspect.Signature(list(found.values()))


def near_names(word: str, known: Any) -> str:
    """The end of an error sentence: close matches of `word` among `known`, else all of them."""
    known = sorted(map(str, known))
    near = difflib.get_close_matches(str(word), known, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(map(repr, near)) + "?"
    return "known: " + (", ".join(known) if known else "none")
