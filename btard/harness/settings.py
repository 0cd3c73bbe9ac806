"""A program's settings: from YAML and the command line, as text, and compared with those of another run.

A settings class is a dataclass that `btard.harness.typed_yaml` can fill. Its `free_to_change` names the keys that do
not change what a run computes, so that it may go on with other values; its `renamed`, if it has one, says what old keys
are called now. Its `found`, if it has one, names keys that are null until the run has found out their value.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Protocol, TypeVar, get_args, get_origin

import yaml

from btard.boundary import one_line
from btard.harness.typed_yaml import AnyPath, ConfigError, build, keys, read_settings, read_words


class Settings(Protocol):
    """A dataclass of settings."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    free_to_change: ClassVar[frozenset[str]]


S = TypeVar("S", bound=Settings)


def load_config(cls: type[S], argv: Sequence[str] | None, program: str, about: str) -> tuple[S, Path]:
    """Return the settings and the run folder that `CONFIG.yaml --out RUN_DIR [--dotted.key value ...]` asks for.

    `argv` is by default the process's; `about` says what the program does, for --help. Ends the process: with code 0
    after --help, and with code 2 after one line on stderr if a key, a value or a file is wrong.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "-h" in words or "--help" in words:
        print(help_text(cls, program, about))
        raise SystemExit(0)
    try:
        return parse_command_line(cls, words, program)
    except ConfigError as error:
        exit_with(error)


def exit_with(error: Exception) -> NoReturn:
    """End the process with code 2 and one line on stderr, as for any mistake in what the user asked for."""
    print("error:", one_line(str(error)), file=sys.stderr)
    raise SystemExit(2)


def parse_command_line(cls: type[S], words: Sequence[str], program: str) -> tuple[S, Path]:
    """As `load_config`, without ending the process: raises ConfigError."""
    usage = f"usage: {program} CONFIG.yaml --out RUN_DIR [--key value ...]"
    if not words or words[0].startswith("--"):
        raise ConfigError(f"command line: expected a configuration file first; {usage}")
    file, rest = Path(words[0]), list(words[1:])
    out = None
    for index, word in enumerate(rest):
        if word == "--out" and index + 1 < len(rest) and not rest[index + 1].startswith("--"):
            out = rest[index + 1]
            del rest[index : index + 2]
            break
        if word.startswith("--out="):
            out = rest.pop(index).partition("=")[2]
            break
    if not out:
        raise ConfigError(f"command line: --out RUN_DIR is missing: the folder that the run is written to; {usage}")
    return build(cls, read_settings(file, cls) | read_words(rest, cls), str(file)), Path(out)


def read_config(cls: type[S], path: AnyPath) -> S:
    """Return the settings in a YAML file; what it leaves out has its default. Raises ConfigError."""
    return build(cls, read_settings(path, cls), str(path))


def config_text(config: Settings) -> str:
    """Return every setting as YAML that `read_config` reads back to an equal object; always the same text for it."""
    return yaml.safe_dump(asdict(config), sort_keys=False, default_flow_style=False, allow_unicode=True)


def differing_keys(one: S, other: S) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, value in one, value in the other) for keys that change what a run computes and differ."""
    compared = [key for key in keys(type(one)) if key not in one.free_to_change]
    differing = [(key, a, b) for key in compared if (a := value_of(one, key)) != (b := value_of(other, key))]
    return [(key, a, b) for key, a, b in differing if key not in found_by(one) or None not in (a, b)]


def found_by(config: Settings) -> frozenset[str]:
    """Return the keys that are null until a run has found their values; only two known values can differ."""
    return getattr(config, "found", frozenset())


def value_of(config: Settings, key: str) -> Any:
    """Return the value of a dotted key, which may be that of an entry of a mapping."""
    found: Any = config
    for name in key.split("."):
        found = found[name] if isinstance(found, Mapping) else getattr(found, name)
    return found


def help_text(cls: type[S], program: str, about: str) -> str:
    """Return what --help prints: the usage, `about`, and every key with its default and what it does.

    The keys that `cls` calls `common` come first.
    """
    lines = [f"usage: {program} CONFIG.yaml --out RUN_DIR [--key value ...]", "", about, ""]
    known, common = keys(cls), tuple(key for key in getattr(cls, "common", ()) if key in keys(cls))
    if common:
        lines += ["The keys that are changed most often, their defaults, and what they do:"]
    for key in (*common, *(key for key in known if key not in common)):
        if key not in common and key == next(other for other in known if other not in common):
            lines += ["", "All other keys:" if common else "The keys, their defaults, and what they do:"]
        hint, doc = known[key]
        choices = f" (of {', '.join(get_args(hint))})" if get_origin(hint) is Literal else ""
        lines += ["", f"  --{key} {default_of(cls, key)}{choices}", f"      {doc}"]
    return "\n".join(lines)


def default_of(cls: type[S], key: str) -> str:
    """Return the default of a dotted key as YAML in one line."""
    return yaml.safe_dump(value_of(cls(), key), width=sys.maxsize).splitlines()[0]
