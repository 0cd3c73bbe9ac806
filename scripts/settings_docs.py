"""`python -m scripts.settings_docs --out docs/settings.md`: every setting of a run, from the classes that hold them.

What is said of a key is the docstring below its field, as in `--help`.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import albert.config
import resnet.config
from btard.boundary import program
from btard.harness.settings import default_of
from btard.harness.typed_yaml import keys
from scripts.page import write_page

INTRODUCTION = """\
# Settings

Made by `python -m scripts.settings_docs --out docs/settings.md`.

A run is described by a YAML file, and every key can be changed on the command line:

```bash
python -m resnet.train configs/resnet/digits.yaml --out runs/a --byzantine 7 --attack.name alie
```

- A file has sections (`attack:` with `name:` in it) or dotted keys (`attack.name:`). What it leaves out has the
  default, which is the paper's, except for `protocol.tau` and `protocol.heal`: both are `auto`, which needs no tuning.
  With `--protocol.tau 1 --protocol.heal off` a run is as in the paper. `base: FILE` in a file takes all from another
  file beside it first.
- On the command line `--key value` and `--key=value` are the same; the last one counts. `null`, `true`, `inf` and
  `1e-3` are nothing, a truth, and numbers.
- A key that does not exist, or a value that makes no sense, ends the program with exit code 2 and one line.
- `config.yaml` in the run folder has all settings of the run. The same command goes on with it; other settings are
  refused, but for the keys that are marked with *may change*.

The keys of a swarm on AWS are in [aws.md](aws.md#settings), what to do about messages in
[troubleshooting.md](troubleshooting.md).
"""

SWARM = """\
Of `python -m albert.coordinator`, `albert.trainer` and `albert.swarm`. How to run one is in [running.md](running.md),
how it works in [swarm.md](swarm.md).

Keys with *alike* must be equal at all peers, the coordinator included, and are compared before peers talk; with *alike
if exact*, unless `protocol.validation` is `tolerant`. All other keys are each peer's own affair.
"""

RESNET = """\
Of `python -m resnet.train`, and of every run of a sweep.
"""


def values_of(hint: Any) -> str:
    """The possible values of a key, for people."""
    if get_origin(hint) in (Union, types.UnionType):
        return ", ".join(values_of(option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) is dict:
        return "names and values"
    return {int: "integer", float: "number", bool: "`true`, `false`", str: "text", type(None): "`null`"}[hint]


def sections(cls: type) -> Iterator[tuple[str, str, list[str]]]:
    """(name, description, dotted keys) of the class itself, whose name is empty, and of each class in it."""
    hints = get_type_hints(cls)
    yield "", "", [item.name for item in fields(cls) if not is_dataclass(hints[item.name])]
    for item in fields(cls):
        if is_dataclass(part := hints[item.name]):
            about = (part.__doc__ or "").strip().splitlines()[0]
            yield item.name, about, [f"{item.name}.{leaf.name}" for leaf in fields(part)]


def alike() -> dict[str, str]:
    """The note on the swarm's keys that peers compare."""
    exact = albert.config.Config(precision="float16")
    tolerant = replace(exact, protocol=replace(exact.protocol, validation="tolerant"))
    named = {key: "*alike*" if key in tolerant.agreed() else "*alike if exact*" for key in exact.agreed()}
    content = "*alike* in what is in it"
    return named | {"run_id": "*alike*", "start_from": content, "data.path": content, "network.founders": content}


def tables(cls: Any, remarks: dict[str, str]) -> Iterator[str]:
    """Markdown: a table for each section of a settings class."""
    known = keys(cls)
    for name, about, leaves in sections(cls):
        if name:
            yield f"\n### `{name}`\n\n{about}\n"
        yield "| key | default | values | what it does, and when to change it |"
        yield "| --- | --- | --- | --- |"
        for key in leaves:
            hint, doc = known[key]
            marks = [remarks[key]] if key in remarks else []
            marks += ["*may change*"] if key in cls.free_to_change else []
            said = " ".join([doc, *(f"{mark[0]}{mark[1].upper()}{mark[2:]}." for mark in marks)])
            yield f"| `{key}` | `{default_of(cls, key)}` | {values_of(hint)} | {said.replace('|', chr(92) + '|')} |"


def text() -> str:
    """The whole file."""
    parts = [INTRODUCTION, "## A swarm\n", SWARM, *tables(albert.config.Config, alike())]
    parts += ["\n## A ResNet run\n", RESNET, *tables(resnet.config.Config, {})]
    return "\n".join(parts) + "\n"


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> None:
    write_page(__doc__, text, argv)


if __name__ == "__main__":
    sys.exit(main())
