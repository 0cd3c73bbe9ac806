"""`python -m scripts.api_docs --out docs/api.md`: the public names of `btard`, from their docstrings."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from types import FunctionType
from typing import Any

import btard
from btard.boundary import program
from scripts.page import write_page

INTRODUCTION = """\
# Public names

Made by `python -m scripts.api_docs --out docs/api.md`.

`import btard` imports none of them; each is imported when it is first used. [your-own-model.md](your-own-model.md) and
[library.md](library.md) show them at work. n peers, b of them Byzantine, m validators per step, d parameters.
"""
GROUPS = {
    "A PyTorch model, trained": ("TorchTask", "simulate", "distributed", "Run", "Ban"),
    "Aggregation rules": ("AGGREGATORS", "centered_clip", "Rule", "make_rule"),
    "Attacks": ("ATTACKS", "make_attack", "Attack", "option", "Behaviour", "Collusion"),
    "A task, and what runs it": (
        "Task",
        "QuadraticTask",
        "LocalDriver",
        "CollectiveDriver",
        "ServerDriver",
        "Mesh",
        "Links",
        "StepResult",
    ),
    "The protocol": ("ProtocolConfig", "Peer", "Identity", "Compute", "Entry", "stream", "survival_law", "Recorder"),
}

EXTENSIBLE = ("TorchTask",)
"""Classes that users extend: what these inherit from classes without a section is listed as well."""


def markdown(doc: str) -> str:
    """A docstring, whose examples become blocks of code."""
    parts, example, lines = [], False, inspect.cleandoc(doc).splitlines()
    for line in lines:
        if line.startswith(">>>") and not example:
            example = True
            parts.append("```pycon")
        elif example and not line.strip():
            example = False
            parts.append("```")
        parts.append(line)
    return "\n".join([*parts, "```"] if example else parts)


def documented(module: str) -> dict[str, str]:
    """Name, or class and attribute with a dot, -> the text below its assignment in the source of `module`."""
    found = {}
    tree = ast.parse(inspect.getsource(import_module(module)))
    bodies = [("", tree.body), *((f"{x.name}.", x.body) for x in tree.body if isinstance(x, ast.ClassDef))]
    for prefix, body in bodies:
        for one, text in pairwise(body):
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(text, ast.Expr):
                found[prefix + one.target.id] = str(ast.literal_eval(text.value))
    return found


def signature(value: Any) -> str:
    """Its call: names, types and defaults, one argument per line if there are many."""
    found = inspect.signature(value)
    words, starred = [], False
    for argument in found.parameters.values():
        kind, hint = argument.kind, argument.annotation
        if kind is argument.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        stars = "*" if kind is argument.VAR_POSITIONAL else "**" if kind is argument.VAR_KEYWORD else ""
        hint = getattr(hint, "__forward_arg__", hint)
        said = f"{stars}{argument.name}: {hint if isinstance(hint, str) else inspect.formatannotation(hint)}"
        if argument.default is not argument.empty:
            shown = repr(argument.default)
            said += f" = {'...' if shown.startswith('<') else shown}"
        words.append(said)
    ends = found.return_annotation
    back = "" if isinstance(value, type) or ends is found.empty else f" -> {ends}"
    line = f"{value.__name__}({', '.join(words)}){back}"
    if len(line) <= 100:
        return line
    return f"{value.__name__}(\n" + "".join(f"    {word},\n" for word in words) + f"){back}"


def members(value: type) -> Iterator[str]:
    """A line for each public method and field of a class."""
    texts = documented(value.__module__)
    for name, text in texts.items():
        if name.startswith(f"{value.__name__}.") and not name.partition(".")[2].startswith("_"):
            yield f"- `{name.partition('.')[2]}`: {' '.join(text.split())}"
    classes = value.__mro__ if value.__name__ in EXTENSIBLE else (value,)
    for name, item in (found for one in classes for found in vars(one).items()):
        function = item.fget if isinstance(item, property) else getattr(item, "__func__", item)
        if name.startswith("_") or not isinstance(function, FunctionType) or not function.__doc__:
            continue
        arguments = "" if isinstance(item, property) else "()"
        summary = " ".join(inspect.cleandoc(function.__doc__).split("\n\n")[0].split())
        yield f"- `{name}{arguments}`: {summary}"


def entry(name: str) -> str:
    """The section of a public name."""
    value = getattr(btard, name)
    if isinstance(value, dict):
        place = "btard.attacks.registry" if name == "ATTACKS" else btard._PLACES[name]
        return f"### {name}\n\n{markdown(documented(place)[name])}\n"
    shown = [f"### {name}\n", f"```python\n{signature(value)}\n```\n", f"{markdown(value.__doc__ or '')}\n"]
    if isinstance(value, type) and (lines := list(members(value))):
        shown.append("\n".join(lines) + "\n")
    return "\n".join(shown)


def text() -> str:
    """The whole file."""
    parts = [INTRODUCTION]
    for title, names in GROUPS.items():
        parts += [f"## {title}\n", *map(entry, names)]
    return "\n".join(parts)


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> None:
    write_page(__doc__, text, argv)


if __name__ == "__main__":
    sys.exit(main())
