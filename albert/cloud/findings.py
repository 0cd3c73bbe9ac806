"""What was checked before a launch, the result, and what to do about it."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "stop"]


@dataclass(frozen=True)
class Finding:
    """One line of `plan`. `stop`: a launch is refused until this is solved. `note`: worth knowing."""

    level: Level
    topic: str
    found: str
    advice: str = ""
