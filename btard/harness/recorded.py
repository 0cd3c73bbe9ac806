"""The settings in a run's folder, which may be a stranger's: read within bounds, classes that they name left alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from btard.audit.files import CONFIG, read_bounded
from btard.harness.settings import S
from btard.harness.typed_yaml import ConfigError, build, mapping_of, settings_of
from btard.protocol.wire import Malformed

MAX_CONFIG = 2**18
"""Bytes: the settings of a run are a few thousand, and a parser takes seconds for this many."""
MAX_THREADS = 1024


def recorded_mapping(folder: Path) -> Mapping[str, Any]:
    """The content of config.yaml as a run writes it: no aliases, every key text. Errors: ConfigError."""
    file = folder / CONFIG
    try:
        text = read_bounded(file, MAX_CONFIG).decode("utf-8")
    except (Malformed, UnicodeDecodeError) as error:
        raise ConfigError(f"{folder}: {error}") from None
    content = mapping_of(text, file, aliases=False)
    for key in content:
        if not isinstance(key, str):
            raise ConfigError(f"{file}: expected a mapping of keys to values, got a key that is no text: {key!a:.40}")
    return content


def read_recorded(cls: type[S], folder: Path, *, without: Collection[str] = ()) -> S:
    """The settings in the folder, with the defaults of the sections and keys in `without`.

    These are those that can name somebody's own class, module:Class, which `cls` would import to check it. Errors:
    ConfigError.
    """
    content = {key: value for key, value in recorded_mapping(folder).items() if key.partition(".")[0] not in without}
    file = str(folder / CONFIG)
    return build(cls, settings_of(content, cls, file), file)


def use_threads(threads: int | None) -> None:
    """Have torch compute with the number of threads of a run: bits depend on it. Errors: ConfigError."""
    import torch

    if threads is None:
        return
    if threads > MAX_THREADS:
        raise ConfigError(f"threads must be <= {MAX_THREADS} to compute a run's gradients again, got {threads}")
    torch.set_num_threads(threads)
