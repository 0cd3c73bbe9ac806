"""The commands of a swarm, with ALBERT's task and ALBERT's packages."""

from __future__ import annotations

from collections.abc import Sequence

from btard.extras import need

TASK = "albert.task:make"
"""The task for `python -m btard.swarm --task` that trains ALBERT."""


def run(command: str, words: Sequence[str] | None, program: str) -> int:
    """Return the exit code of `python -m btard.swarm COMMAND --task albert.task:make`, called by the name `program`."""
    need("experiments", "hivemind", "pytorch_optimizer", "transformers", "yaml")
    from albert.config import Config
    from btard.swarm import commands

    return commands.run(command, words, TASK, program, "configs/albert/tiny_sign_flip.yaml", Config)
