"""`python -m btard.swarm coordinator|trainer|local CONFIG.yaml --task MODULE:FUNCTION --out RUN_DIR [--key value ...]`.

A swarm of one coordinator and `peers` trainers trains what the function creates from the settings: a task and its
optimizer (see btard/swarm/task.py). `local` runs all of them on this machine.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

# Before torch is imported: threads that wait by spinning steal the cores from those that work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from btard.boundary import program
from btard.extras import need
from btard.swarm.forking import begin_forking

if TYPE_CHECKING:
    from btard.swarm.config import SwarmConfig

COMMANDS = {
    "coordinator": "the meeting place and observer of a swarm",
    "trainer": "one peer of a swarm",
    "local": "a whole swarm on this machine: a coordinator and `peers` trainers",
}
PROGRAM = "python -m btard.swarm"
USAGE = f"usage: {PROGRAM} {'|'.join(COMMANDS)} CONFIG.yaml --task MODULE:FUNCTION --out RUN_DIR [--key value ...]"
ABOUT = {
    "coordinator": """Starts the swarm of CONFIG.yaml, with these keys changed: prints the address that trainers need,
and watches them until they are done. RUN_DIR gets metrics, ledger and checkpoints. The same command watches again.""",
    "trainer": """Runs one peer of the swarm of CONFIG.yaml, with these keys changed, all alike at all peers where
docs/settings.md says so. RUN_DIR gets its key, metrics, ledger and checkpoints. The same command comes back.""",
    "local": """Runs the coordinator and all trainers of CONFIG.yaml on this machine, with these keys changed. RUN_DIR
gets a folder for each of them. The same command goes on after an interruption.""",
}
EXAMPLES = {
    "coordinator": "{program} {file} --out runs/coordinator --network.port 31337",
    "trainer": "{program} {file} --out runs/peer \\\n      --network.initial_peers /ip4/IP/tcp/31337/p2p/12D3KooW...",
    "local": "{program} {file} --out runs/swarm --attack.start 20",
}
OWN_FILE = "swarm.yaml"


def about(command: str, program: str, file: str) -> str:
    """Return the --help text of a command, with an example."""
    return f"{ABOUT[command]}\n\nExample:\n  {EXAMPLES[command].format(program=program, file=file)}"


def run(
    command: str,
    words: Sequence[str] | None,
    task: str,
    program: str,
    file: str = OWN_FILE,
    settings: type[SwarmConfig] | None = None,
) -> int:
    """Run a command of the swarm of `task`, module:function; returns the exit code.

    `words` are by default the process's; `file` is the configuration that --help has an example with; `settings` the
    class of the task's settings, by default the one that its function is annotated with: then --help and mistakes have
    to wait for the task's imports. Ends the process with code 2 after one line about a mistake.
    """
    need("swarm", "hivemind", "rich", "yaml")
    from btard.harness.settings import load_config

    if settings is None:
        if command == "local":
            begin_forking(task)
        from btard.swarm.task import load_task

        settings = load_task(task).config
    config, out = load_config(settings, words, program, about(command, program, file))
    warnings.showwarning = lambda message, *_args, **_kw: print(f"warning: {message}", file=sys.stderr)
    if command == "local":
        begin_forking(task)  # this process itself needs nothing of the task
        from btard.swarm import local

        return local.main(config, out, task)
    from btard.swarm.task import load_task

    code: int = importlib.import_module(f"btard.swarm.{command}").main(config, out, load_task(task))
    return code


@program("the same command goes on")
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code; see `run`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words in (["-h"], ["--help"]):
        print(USAGE, "", __doc__.partition("\n")[2].strip(), "", sep="\n")
        for name, what in COMMANDS.items():
            print(f"  {name:12} {what}")
        print("\nWith --task MODULE:FUNCTION --help a command shows all keys.")
        return 0
    command = words.pop(0) if words else ""
    task = _take(words, "--task")
    if command not in COMMANDS or not task:
        wrong = "--task MODULE:FUNCTION is missing" if command in COMMANDS else f"expected a command, got {command!r}"
        print(f"error: {wrong}; {USAGE}", file=sys.stderr)
        return 2
    return run(command, words, task, f"{PROGRAM} {command} --task {task}")


def _take(words: list[str], name: str) -> str | None:
    """Remove `name VALUE` or `name=VALUE` from the words; returns the value, None if it is not there."""
    for index, word in enumerate(words):
        if word == name and index + 1 < len(words):
            value = words[index + 1]
            del words[index : index + 2]
            return value
        if word.startswith(f"{name}="):
            return words.pop(index).partition("=")[2]
    return None
