"""Fills nested dataclasses from YAML and `--dotted.key value` words, and says in one line what is wrong with them.

A field may be int, float, bool, str, a Literal, a mapping of such, any of them or None, or another dataclass.
"""

import ast
import difflib
import functools
import inspect
import itertools
import math
import textwrap
import types
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from btard.boundary import Mistake
from btard.checks import FieldError, field_types
from btard.harness.yaml_loader import Loader, NoAliases

COMMAND_LINE = "command line"
RENAMED_IN = "0.2"
"""The version whose settings classes list the earlier names of their keys in `renamed`."""
BASE = "base"
"""The key that names the file on whose settings a file is based."""

SHOWN = 200
"""Characters of a wrong value that a line about it shows."""

T = TypeVar("T")

AnyPath = Path | zipfile.Path
"""A file or folder on the disk, or one inside an archive of finished runs."""


class ConfigError(Mistake, ValueError):
    """One line for the user: where, which key, what was expected, what came, what to do."""


@dataclass(frozen=True)
class Setting:
    """A value and the file that it is from, or `COMMAND_LINE`; from there it is still text."""

    value: Any
    origin: str


def keys(cls: type) -> dict[str, tuple[Any, str]]:
    """Return every leaf of `cls`: dotted key -> (type, the docstring below the field)."""
    return dict(_leaves(cls, ""))


def _leaves(cls: type, prefix: str) -> Iterator[tuple[str, tuple[Any, str]]]:
    hints, docs = field_types(cls), _field_docs(cls)
    for field in fields(cls):
        hint = hints[field.name]
        if is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            yield prefix + field.name, (hint, docs.get(field.name, ""))


@functools.cache
def _field_docs(cls: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    for base in filter(is_dataclass, reversed(cls.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, doc in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr) and isinstance(doc.value, ast.Constant):
                docs[ast.unparse(field.target)] = " ".join(str(doc.value.value).split())
    return docs


def read_settings(path: AnyPath, cls: type) -> dict[str, Setting]:
    """Return the settings of a YAML file by dotted key. Raises ConfigError for what `cls` does not have.

    `base` names another file beside it, whose settings count where this one has none.
    """
    return _read(path, cls, ())


def _read(path: AnyPath, cls: type, above: tuple[AnyPath, ...]) -> dict[str, Setting]:
    content = dict(read_mapping(path))
    heads = {key.partition(".")[0] for key in keys(cls)}
    for key, what in getattr(cls, "elsewhere", {}).items():
        if key in content and key not in heads:
            raise ConfigError(f"{path}: is {what.format(file=path)}")
    base = content.pop(BASE, None)
    if base is None:
        return settings_of(content, cls, str(path))
    if not isinstance(base, str):
        raise ConfigError(f"{path}: {BASE} must be the name of a file beside it, got {_named(base)}")
    other = Path(str(path.parent)) / base  # on the disk: nothing in an archive is based on another file
    if other in (path, *above):
        raise ConfigError(f"{path}: {BASE} {base} leads back to a file that is based on this one")
    return _read(other, cls, (*above, path)) | settings_of(content, cls, str(path))


def settings_of(content: Mapping[Any, Any], cls: type, origin: str) -> dict[str, Setting]:
    """Return the settings in a mapping, nested or by dotted key, from `origin`; errors as `read_settings`."""
    found: dict[str, Setting] = {}
    for key, setting in _flatten(content, "", keys(cls), _renamed(cls), origin):
        if key in found:
            raise ConfigError(f"{origin}: {key} stands there twice, once in its section and once by its whole name")
        found[key] = setting
    return found


def _renamed(cls: type) -> Mapping[str, str]:
    """Former names of the keys of `cls` -> their names."""
    return getattr(cls, "renamed", {})


def read_mapping(path: AnyPath) -> Mapping[Any, Any]:
    """Return the content of a YAML file that is a mapping, empty for an empty file; ConfigError for any other file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected a YAML file with settings") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path}: cannot be read: {reason}; expected a YAML file with settings") from None
    return mapping_of(text, path)


def mapping_of(text: str, path: AnyPath, *, aliases: bool = True) -> Mapping[Any, Any]:
    """As `read_mapping`, of a file's text. Without `aliases` they are refused: a few of them stand for any length."""
    try:
        content = yaml.load(text, Loader=Loader if aliases else NoAliases)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply; expected a mapping of keys to values") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "a character that YAML does not allow"
        raise ConfigError(f"{path}: not valid YAML{where}: {problem}") from None
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {_named(content)}")
    return content


def _flatten(
    content: Mapping[Any, Any], prefix: str, known: Mapping[str, Any], renamed: Mapping[str, str], origin: str
) -> Iterator[tuple[str, Setting]]:
    for name, value in content.items():
        key = f"{prefix}{name if isinstance(name, str) else _named(name)}"
        if key in known:
            yield key, Setting(value, origin)
        elif key in renamed:
            raise ConfigError(f"{origin}: {key} is {renamed[key]} since version {RENAMED_IN}")
        elif not any(leaf.startswith(key + ".") for leaf in known):
            raise ConfigError(f"{origin}: unknown key {key}{_suggestion(key, known)}")
        elif isinstance(value, Mapping):
            yield from _flatten(value, key + ".", known, renamed, origin)
        elif value is not None:  # a section whose lines are all commented out
            raise ConfigError(f"{origin}: {key} must be a section of keys, got {_named(value)}")


def read_words(words: Sequence[str], cls: type) -> dict[str, Setting]:
    """Return the settings in `--dotted.key value` or `--dotted.key=value` words; the last of a key counts."""
    known, settings = keys(cls), {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"{COMMAND_LINE}: unexpected word {word!r}; settings are written --key value")
        key, equals, value = word[2:].partition("=")
        if key not in known and (spelled := key.replace("-", "_")) in known:
            key = spelled
        if key in _renamed(cls):
            raise ConfigError(f"{COMMAND_LINE}: --{key} is --{_renamed(cls)[key]} since version {RENAMED_IN}")
        if _hint(key, known) is None:
            raise ConfigError(f"{COMMAND_LINE}: unknown key --{key}{_suggestion(key, known, '--')}")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise ConfigError(f"{COMMAND_LINE}: --{key} needs a value")
            value = remaining.pop(0)
        settings[key] = Setting(value, COMMAND_LINE)
    return settings


def converted(settings: Mapping[str, Setting], cls: type) -> dict[str, Any]:
    """Return the values of settings by dotted key, each of the type that `cls` says. Raises ConfigError."""
    known = keys(cls)
    return {key: _convert(key, setting, _hint(key, known)) for key, setting in settings.items()}


def _hint(key: str, known: Mapping[str, tuple[Any, str]]) -> Any:
    """The type of a key, which may be an entry of a mapping, by whatever name; None if there is no such key."""
    if key in known:
        return known[key][0]
    return next((_mapping_value(hint) for name, (hint, _) in known.items() if key.startswith(f"{name}.")), None)


def build(cls: type[T], settings: Mapping[str, Setting], origin: str) -> T:
    """Return a `cls` with `settings` in it; a failed check of a value nobody set is blamed on `origin`.

    Raises ConfigError for a value of the wrong type, and for one that the dataclass's own checks refuse.
    """
    return _build(cls, settings, "", origin)


def _build(cls: type[T], settings: Mapping[str, Setting], prefix: str, origin: str, default: T | None = None) -> T:
    values: dict[str, Any] = {}
    hints = field_types(cls)
    for field in fields(cls):  # type: ignore[arg-type]
        key, hint = prefix + field.name, hints[field.name]
        if is_dataclass(hint):
            usual = field.default_factory() if default is None else getattr(default, field.name)  # type: ignore[operator]
            values[field.name] = _build(hint, settings, key + ".", origin, usual)  # type: ignore[arg-type]
            continue
        if key in settings:
            values[field.name] = _convert(key, settings[key], hint)
        value_type = _mapping_value(hint)  # of a mapping, words may set one entry
        entries = {} if value_type is None else {k: s for k, s in settings.items() if k.startswith(key + ".")}
        if entries:
            changed = {k[len(key) + 1 :]: _convert(k, s, value_type) for k, s in entries.items()}
            values[field.name] = {**values.get(field.name, {}), **changed}
    try:
        return cls(**values) if default is None else replace(default, **values)  # type: ignore[type-var]
    except FieldError as error:
        raise _blamed(error, settings, prefix, origin) from None


def _blamed(error: FieldError, settings: Mapping[str, Setting], prefix: str, origin: str) -> ConfigError:
    """The error with the place of the value; `origin` if neither it nor what it depends on was set."""
    key = prefix + error.field
    setting = settings.get(key) or settings.get(key.rpartition(".")[0])  # an entry of a mapping stands with the others
    if setting is not None:
        return ConfigError(f"{_place(setting.origin, key)} {error.message}")
    beside = settings.get(prefix + error.beside)
    return ConfigError(f"{beside.origin if beside is not None else origin}: {key} (by default) {error.message}")


def _place(origin: str, key: str) -> str:
    """The place of a value, for people: "a.yaml: optimizer.lr" or "command line: --optimizer.lr"."""
    return f"{origin}: {'--' if origin == COMMAND_LINE else ''}{key}"


def _convert(key: str, setting: Setting, hint: Any) -> Any:
    options = _options(hint)
    value = setting.value
    if setting.origin == COMMAND_LINE:
        value = _parse_word(value, options)
    for option in options:
        accepted, result = _accept(value, option)
        if accepted:
            return result
    expected = " or ".join(_expected(option) for option in options)
    choices = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    hint_text = f"; {nearest(value, choices)}" if choices and isinstance(value, str) else ""
    if isinstance(value, bool) and setting.origin != COMMAND_LINE and (choices or str in options):
        hint_text = "; YAML reads a bare yes, no, on or off as true or false: quote it"
    raise ConfigError(f"{_place(setting.origin, key)} must be {expected}, got {_named(value)}{hint_text}")


def _parse_word(text: str, options: Sequence[Any]) -> Any:
    """The value that `text` would have in a YAML file, except that a path `007` and what is no YAML remain text."""
    if str in options and not {int, float, bool} & set(options):
        return None if text in ("null", "~", "") and type(None) in options else text
    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, RecursionError):
        return text


def _accept(value: Any, option: Any) -> tuple[bool, Any]:
    """Whether `value` is of type `option`, and its value as that type."""
    if get_origin(option) is Literal:
        if value is False:  # that is how YAML reads the bare word
            value = "off"
        return value in get_args(option) and not isinstance(value, bool), value
    if get_origin(option) is dict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            return False, None
        items = {
            n: [r for ok, r in (_accept(v, o) for o in _options(get_args(option)[1])) if ok] for n, v in value.items()
        }
        return all(items.values()), {name: results[0] for name, results in items.items() if results}
    if option is float:
        return _number(value)
    if isinstance(value, bool) and option is not bool:
        return False, None
    return isinstance(value, option), value


def _number(value: Any) -> tuple[bool, float]:
    # YAML 1.1 reads `inf` and `1e-3` as text; here they are numbers, as everybody means them.
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    overflown = math.isinf(number) and isinstance(value, str) and "inf" not in value.lower()
    return not (math.isnan(number) or overflown), number


@functools.cache
def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


@functools.cache
def _mapping_value(hint: Any) -> Any:
    """The type of a mapping's values, None if `hint` is no mapping."""
    return next((get_args(option)[1] for option in _options(hint) if get_origin(option) is dict), None)


def _expected(option: Any) -> str:
    if get_origin(option) is Literal:
        choices = [str(choice) for choice in get_args(option)]
        return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)
    if get_origin(option) is dict:
        return "a mapping of names to values"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names[option]


def _named(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | set | Mapping):
        return "a list" if isinstance(value, list) else "a mapping" if isinstance(value, Mapping) else "a set"
    said = repr(value)
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}... ({len(said)} characters)"


def nearest(word: str, words: Iterable[str]) -> str:
    """Return "did you mean ...?" for a misspelt word, or advice to choose one of them if none is similar."""
    known = {name.lower(): name for name in words}
    near = difflib.get_close_matches(word.lower(), known, n=1)
    return f"did you mean {known[near[0]]}?" if near else "choose one of them"


def _suggestion(key: str, known: Mapping[str, Any], dashes: str = "") -> str:
    # `name` alone is nearer to nothing, but somebody who writes it means attack.name or the like.
    alike = [leaf for leaf in known if leaf.rpartition(".")[2] == key.rpartition(".")[2]]
    near = difflib.get_close_matches(key, alike, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.6) or alike
    return f"; did you mean {dashes}{near[0]}?" if near else "; --help lists all keys"
