"""What `btard.simulate` and `btard.distributed` are asked for alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from btard.attacks import Attack
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.training.checking import check_whole
from btard.training.optimizer import MakeOptimizer, MakeScheduler
from btard.training.run import Run

MakeAttack = str | type[Attack] | Callable[[Collusion], Behaviour]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `simulate` and `distributed` are asked for alike; `simulate` says what each of it means."""

    optimizer: MakeOptimizer
    steps: int
    scheduler: MakeScheduler | None
    byzantine: int
    attack: MakeAttack | None
    attack_options: Mapping[str, Any] | None
    seed: int
    run_id: str | None
    protocol: Mapping[str, Any]
    out: Path | str | None
    checkpoint_every: int
    progress: bool
    on_step: Callable[[Run], None] | None

    def __post_init__(self) -> None:
        """Errors: ValueError or TypeError for an argument of another kind than it has to be."""
        for name, least in (("steps", 0), ("byzantine", 0), ("checkpoint_every", 1), ("seed", None)):
            check_whole(name, getattr(self, name), least)
        kinds: dict[str, tuple[type | Any, str]] = {
            "attack_options": (Mapping, "a dictionary of options by name"),
            "run_id": (str, "a text"),
            "out": ((str, Path), "the path of a folder"),
            "on_step": (Callable, "a function of the run"),
        }
        for name, (kind, expected) in kinds.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} must be {expected} or None, got {type(value).__name__} {value!r:.40}")

    @property
    def name(self) -> str:
        """The name of the run, in every hash and signature."""
        return self.run_id or f"btard/{self.seed}"


def named(choice: Any) -> str:
    """A name for what was given by name, as a class or function, or as an object of one."""
    if choice is None or isinstance(choice, str):
        return str(choice)
    kind = choice if hasattr(choice, "__qualname__") else type(choice)
    return f"{kind.__module__}:{kind.__qualname__}"
