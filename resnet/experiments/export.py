"""What a repository should keep of a sweep: enough for the same report, without checkpoints and private paths."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from btard.audit.files import CONFIG, LEDGER, METRICS, SUMMARY
from btard.harness.packed import pack
from btard.harness.run_folder import RunFolderError
from btard.harness.settings import config_text
from resnet.experiments.grid import GRID_FILE, parse_grid
from resnet.experiments.outcomes import PLACE, SPEEDS_FILE, Outcome, Results
from resnet.experiments.plan import PACKED


def export(results: Results, source: Path, target: Path, listen: Callable[[], object] = lambda: None) -> None:
    """Write the finished runs of `results`, which were read from `source`, to the folder `target`.

    Of each run, in one archive: its settings, summary, ledger, and those metrics that have an accuracy or say that it
    went back. Where the data lay is replaced by its bare name, and timings by steps per second. An earlier export in
    `target` is replaced. Calls `listen` after each run. Raises RunFolderError if `target` holds anything else.
    """
    if target.exists() and not target.is_dir():
        raise RunFolderError(f"{target}: is no folder; choose another --export")
    if target.resolve() == source.resolve():
        raise RunFolderError(f"{target}: is the sweep itself; choose another --export")
    others = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
    if others and SPEEDS_FILE not in others:
        raise RunFolderError(f"{target}: holds other files ({others[0]}) and no export; choose another --export")
    text = _public(results.grid.text)
    public = parse_grid(yaml.safe_load(text), str(source / GRID_FILE))
    if [cell.name for cell in public.cells] != [cell.name for cell in results.grid.cells]:
        raise RunFolderError(f"{source}: runs are named after their {PLACE}, and cannot be exported without it")
    target.mkdir(parents=True, exist_ok=True)
    # First what marks an export, so that one that was interrupted can be done again.
    (target / SPEEDS_FILE).write_text(json.dumps(dict(results.speeds), indent=2) + "\n", encoding="utf-8")
    (target / GRID_FILE).write_text(text, encoding="utf-8")
    contents: dict[str, bytes] = {}
    for name, outcome in results.outcomes.items():
        contents |= {f"{name}/{file}": content for file, content in _files_of(outcome).items()}
        listen()
    pack(target / PACKED, contents)


def _files_of(outcome: Outcome) -> dict[str, bytes]:
    config, run = outcome.cell.config, outcome.run
    if config.data.path is not None:
        config = replace(config, data=replace(config.data, path=_bare(config.data.path)))
    told = ("test_accuracy", "back_to")
    measured = [line for line in run.metrics if any(line.get(name) is not None for name in told)]
    files = {
        CONFIG: config_text(config).encode(),
        METRICS: "".join(json.dumps(line) + "\n" for line in measured).encode(),
    }
    copied = {name: run.path / name for name in (SUMMARY, LEDGER)}
    return files | {name: file.read_bytes() for name, file in copied.items() if file.exists()}


def _public(grid: str) -> str:
    """The grid's YAML with every data.path reduced to its last part."""

    def cleaned(value: Any, key: str) -> Any:
        if isinstance(value, Mapping):
            return {name: cleaned(entry, f"{key}.{name}") for name, entry in value.items()}
        if isinstance(value, list):
            return [cleaned(entry, key) for entry in value]
        return _bare(value) if key.endswith(f".{PLACE}") and isinstance(value, str) else value

    return yaml.safe_dump(cleaned(yaml.safe_load(grid), ""), sort_keys=False, allow_unicode=True, width=120)


def _bare(path: str) -> str:
    """The name of the file or folder, without its place."""
    return Path(path).name or path
