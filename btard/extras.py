"""What to install if a program lacks a package: the library alone needs few, the extras install the rest."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import TracebackType


class MissingPackages(ModuleNotFoundError):
    """Packages are not installed; one line says which, and which extra installs them."""


def need(extra: str, *packages: str) -> None:
    """Raise MissingPackages unless all `packages` can be imported; a program that does not catch it ends with a line.

    Nothing is imported. To be called where a package of ours is imported that needs them.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if not missing:
        return
    usual = sys.excepthook

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, MissingPackages):
            print(f"error: {error}", file=sys.stderr)
        else:
            usual(kind, error, trace)

    sys.excepthook = say
    are = "is" if len(missing) == 1 else "are"
    what = f"{', '.join(missing)} {are} not installed, which this program needs"
    raise MissingPackages(f"{what}: pip install 'btard[{extra}]'", name=missing[0])
