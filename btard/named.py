"""Users' own classes, by the name `module:Class`: loaded, or one line that says why not."""

from __future__ import annotations

import importlib
from dataclasses import Field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def own(name: str) -> bool:
    """Whether `name` is a module:Class, and not from a registry."""
    return ":" in name


def load_class(name: str, base: type[T]) -> type[T]:
    """The class `name`, module:Class, which must be a subclass of `base`.

    Errors: ValueError, in one line that goes on after `name`, if there is no such module or class, or the module fails.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute.isidentifier():
        raise ValueError("must be module:Class, such as my_module:MyClass")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"cannot be loaded: module {module} imports {error.name}, which is missing") from None
        raise ValueError(
            f"cannot be loaded: there is no module {error.name}; start in the folder that has it, or add that to "
            f"PYTHONPATH (here is {Path.cwd()})"
        ) from None
    except AttributeError as error:
        known = getattr(error, "obj", None)
        if getattr(known, "__name__", None) != module:
            raise ValueError(f"cannot be loaded: module {module} fails: {_line(error)}") from None
        names = [key for key, value in vars(known).items() if isinstance(value, type)]
        close = get_close_matches(attribute, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"its classes are {', '.join(names) or 'none'}"
        raise ValueError(f"cannot be loaded: module {module} has no {attribute}; {hint}") from None
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(f"cannot be loaded: module {module} fails: {_line(error)}") from None
    check_class(found, base)
    return found


def check_class(found: Any, base: type[T]) -> None:
    """Errors: ValueError, in one line that goes on after its name, unless `found` is a subclass of `base`."""
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"must be a subclass of btard.{base.__name__}, got {_kind(found)}")
    if found is base:
        raise ValueError(f"must be a subclass of btard.{base.__name__}, got that class itself")
    for above in found.__mro__[: found.__mro__.index(base)]:
        for key, value in vars(above).items():
            if isinstance(value, Field):
                raise ValueError(f"has the option {key}: write @dataclass(kw_only=True, eq=False) above the class")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _kind(found: Any) -> str:
    if isinstance(found, type):
        return f"class {found.__name__}({', '.join(above.__name__ for above in found.__bases__)})"
    return f"a {type(found).__name__}"
