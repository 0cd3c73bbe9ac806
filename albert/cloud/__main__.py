"""`python -m albert.cloud plan|launch|status|logs|wait|fetch|stop CONFIG.yaml [--dotted.key value ...]`: on AWS.

    plan    what would be started, what it costs, and what prevents it; changes nothing
    launch  starts the run; a second time, completes a half-made one
    status  peers, machines, speed, dollars so far
    logs    what one of them printed: logs CONFIG.yaml coordinator, a peer's number, or an instance id
    wait    shows the progress until the run has finished (exit code 0) or has ended unfinished (1)
    fetch   copies the run folder from the bucket: fetch CONFIG.yaml --to DIR [--without-checkpoints]
    stop    removes everything, and lists what is left

Every key of CONFIG.yaml can be changed on the command line; give the same changes to every command of a run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from albert.cloud.account import Account
from albert.cloud.config import help_text, load
from albert.cloud.errors import explained
from albert.cloud.fetch import fetch
from albert.cloud.launch import launch
from albert.cloud.logs import logs
from albert.cloud.plan import plan
from albert.cloud.run import Run
from albert.cloud.status import status
from albert.cloud.stop import stop
from albert.cloud.wait import wait
from btard.boundary import program
from btard.harness.tables import console
from btard.harness.typed_yaml import ConfigError

COMMANDS = ("plan", "launch", "status", "logs", "wait", "fetch", "stop")
WITHOUT = "--without-checkpoints"
USAGE = f"usage: python -m albert.cloud {'|'.join(COMMANDS)} CONFIG.yaml [--key value ...]"


@program("the same command looks again at what is there")
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0; 1 if AWS refuses or something is left to do; 2 for a mistake; 130 if interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or "-h" in words or "--help" in words:
        print(f"{__doc__}\nThe keys, their defaults, and what they do:\n\n{help_text()}")
        return 0 if words else 2
    command, path, extra, changes = _parse(words)
    config = load(path, changes)
    with explained():
        return 0 if _act(command, Run(Account(config.region, config.profile), config), extra, console()) else 1


def _act(command: str, run: Run, extra: list[str], out: Console) -> bool:
    """Carry a command out; return whether all is well."""
    if command == "launch":
        return launch(run, out, _ask)
    if command == "logs":
        logs(run, extra[0], out)
        return True
    if command == "fetch":
        return fetch(run, Path(extra[0]), out, checkpoints=WITHOUT not in extra) > 0
    return {"plan": plan, "status": status, "wait": wait, "stop": stop}[command](run, out)


def _parse(words: list[str]) -> tuple[str, Path, list[str], list[str]]:
    """The command, the settings file, the machine or the folder, and the words that change settings."""
    command, *rest = words
    if command not in COMMANDS:
        raise ConfigError(f"command line: expected one of {', '.join(COMMANDS)}, got {command}; {USAGE}")
    if not rest or rest[0].startswith("--"):
        raise ConfigError(f"command line: {command} needs a configuration file; {USAGE}")
    path, *rest = rest
    if command == "fetch":
        return command, Path(path), *_target(rest)
    if command != "logs":
        return command, Path(path), [], rest
    if not rest or rest[0].startswith("--"):
        raise ConfigError("command line: whose logs? logs CONFIG.yaml coordinator, a peer's number, or an instance id")
    return command, Path(path), rest[:1], rest[1:]


def _target(words: list[str]) -> tuple[list[str], list[str]]:
    """The folder after --to, whether to leave out checkpoints, and the other words."""
    rest = [word for word in words if word != WITHOUT]
    without = [WITHOUT] if len(rest) < len(words) else []
    for i, word in enumerate(rest):
        if word.startswith("--to="):
            return [word.removeprefix("--to="), *without], rest[:i] + rest[i + 1 :]
        if word == "--to" and i + 1 < len(rest):
            return [rest[i + 1], *without], rest[:i] + rest[i + 2 :]
    raise ConfigError("command line: where to? fetch CONFIG.yaml --to DIR")


def _ask(question: str, default: bool) -> bool:
    """The answer at the terminal; `default` if nobody is there, no after a second Ctrl-C."""
    if not sys.stdin.isatty():
        return default
    try:
        answer = input(f"{question} [{'Y/n' if default else 'y/N'}] ").strip().lower()
    except (EOFError, KeyboardInterrupt):
        return False
    return answer.startswith("y") if answer else default


if __name__ == "__main__":
    sys.exit(main())
