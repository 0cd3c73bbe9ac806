"""The small files of finished runs in one zip archive, which is read like the folder that it replaces."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from btard.files import complete_file
from btard.harness.run_folder import RunFolderError

EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every entry, so that equal contents give equal archives. It is the earliest that the format knows."""


def pack(file: Path, contents: Mapping[str, bytes]) -> None:
    """Write `contents`, path inside the archive -> bytes, to the zip archive `file`, in this order.

    The archive appears complete or not at all.
    """
    with (
        complete_file(file) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
    ):
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16  # readable for the one who unpacks it
            archive.writestr(entry, content)


def open_packed(file: Path) -> zipfile.Path | None:
    """Return the root of the zip archive `file`, None if there is no such file.

    Every entry is checked against its checksum. Raises RunFolderError, one line, if the archive is damaged.
    """
    if not file.exists():
        return None
    try:
        archive = zipfile.ZipFile(file)
        damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError) as error:
        raise RunFolderError(f"{file}: expected a zip archive of runs, cannot read it ({error}); restore it") from None
    if damaged is not None:
        raise RunFolderError(f"{file}: {damaged} in it is damaged; restore the archive")
    return zipfile.Path(archive)
