"""What a machine is told at its first boot: one bash script that writes all files of `machine/` and starts setup.sh."""

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from albert.cloud.config import words
from albert.cloud.errors import CloudError
from albert.cloud.names import Role, kind_of
from albert.cloud.run import Charter, Run

MACHINE = Path(__file__).parent / "machine"
SCRIPTS = ("end.sh", "finished.sh", "lib.sh", "run.sh", "setup.sh", "upload.sh")
UNITS = ("btard.service", "btard-end.service", "btard-end.timer", "btard-upload.service", "btard-upload.timer")

START = "/var/lib/btard/start.safetensors"
"""The path on machines of the checkpoint that they start from."""
IDENTITY = "identity.key"
"""The coordinator's private key in its run folder."""
LIMIT = 16 * 1024
"""Number of bytes of user data that EC2 accepts."""

_END = "BTARD_END_OF_FILE"
_SECRETS = (
    (r"AKIA[0-9A-Z]{16}", "an AWS access key"),
    (r"-----BEGIN [A-Z ]*PRIVATE KEY-----", "a private key"),
    (r"://[^/\s:@]+:[^/\s@]+@", "an address with a password"),
    (r"(?i)(api_?key|secret|token|passw(or)?d)['\"]?\s*[:=]\s*['\"]?[\w/+.-]{16,}", "a key, token or password"),
    (r"(?i)--\S*(api_?key|secret|token|passw(or)?d)\s+\S{8,}", "a key, token or password"),
)


def user_data(run: Run, role: Role, charter: Charter, swarm_settings: str) -> str:
    """Return the script for the machines of a role.

    Raises CloudError if it is too long for EC2, or if a setting looks like a secret: everybody who may look at the
    launch template, and every program on the machine, can read it.
    """
    settings = _settings(run, role, charter)
    for name, text in (("settings", settings), (run.config.swarm.config, swarm_settings)):
        _refuse_secrets(name, text)
    units = {unit: (MACHINE / unit).read_text(encoding="utf-8") for unit in UNITS}
    units["btard-end.timer"] = units["btard-end.timer"].replace("@ENDS@", f"{charter.ends:%Y-%m-%d %H:%M:%S} UTC")
    script = "\n".join(
        [
            "#!/bin/bash",
            f"# Run {run.config.run_id}: {role}",
            "set -euo pipefail",
            "mkdir -p /opt/btard",
            *_file("/opt/btard/settings", settings),
            *_file("/opt/btard/swarm.yaml", swarm_settings),
            *(line for name in SCRIPTS for line in _file(f"/opt/btard/{name}", (MACHINE / name).read_text("utf-8"))),
            *(line for name, text in units.items() for line in _file(f"/etc/systemd/system/{name}", text)),
            "chmod 755 /opt/btard/*.sh",
            "exec /opt/btard/setup.sh",
            "",
        ]
    )
    size = len(script.encode())
    if size > LIMIT:
        raise CloudError(
            f"the machines' start-up script has {size} bytes, and EC2 takes {LIMIT}; shorten "
            f"{run.config.swarm.config}, for example its comments"
        )
    return script


def _settings(run: Run, role: Role, charter: Charter) -> str:
    config, names, kind = run.config, run.names, kind_of(role)
    coordinator = kind == "coordinator"
    values: dict[str, str | int | bool] = {
        "KIND": kind,
        "BYZANTINE": role == "byzantine",
        "ENDS": int(charter.ends.timestamp()),
        "AWS_DEFAULT_REGION": run.account.region,
        "WHEEL": config.code.wheel or "",
        "REPOSITORY": config.code.repository or "",
        "COMMIT": "" if config.code.wheel else charter.commit,
        "REQUIREMENTS": config.code.requirements or "",
        "INTERPRETER": config.code.python,
        "PYTHON": "/opt/btard/venv/bin/python",
        "DATA": config.data.source or "",
        "DATA_IS_ARCHIVE": config.data.is_archive,
        "DATA_SHA256": config.data.sha256 or "",
        "START_FROM": config.swarm.start_from or "",
        "START": START,
        "RESULTS": (run.folder or "") if coordinator else "",
        "PUBLIC": config.swarm.public,
        "PORT": config.swarm.port,
        "ADDRESS_PARAMETER": names.address,
        "IDENTITY": IDENTITY,
        "WANDB_PARAMETER": (config.wandb.parameter or "") if coordinator else "",
        "KEEP_FINISHED": config.keep_finished,
        "POLL_SECONDS": 10,
        "WATCH_SECONDS": 60,
        "RETRY_SECONDS": 5,
    }
    lists = {
        "PACKAGES": words(config.code.packages),
        "OPTIONS": [word for key, value in options(run, role).items() for word in (f"--{key}", _word(value))],
        "TRAINER_GROUPS": [names.of(other) for other in run.groups],
    }
    lines = [f"{name}={shlex.quote(_word(value))}" for name, value in values.items()]
    lines += [f"{name}=({' '.join(shlex.quote(word) for word in items)})" for name, items in lists.items()]
    return "\n".join(["# shellcheck shell=bash disable=SC2034", *lines, "export AWS_DEFAULT_REGION", ""])


def options(run: Run, role: Role) -> Mapping[str, object]:
    """Return the keys of the swarm's own settings that are different on the machines of a role."""
    config = run.config
    chosen: dict[str, object] = {
        "run_id": config.run_id,
        "peers": config.trainers.count,
        "network.port": config.swarm.port,
    }
    if config.data.source is not None:
        chosen["data.path"] = "/var/lib/btard/data"
    if config.swarm.start_from is not None:
        chosen["start_from"] = START
    if config.trainers.byzantine == 0:
        chosen["attack.name"] = None
    else:
        attack = {"attack.name": config.attack.name, "attack.start": config.attack.start}
        chosen["byzantine"] = config.trainers.byzantine
        chosen |= {key: value for key, value in attack.items() if value is not None}
    if role != "coordinator":
        chosen["attack.join"] = role == "byzantine"
    elif config.wandb.parameter is not None:
        chosen["wandb"] = config.wandb.project
    return chosen | config.swarm.options


def _word(value: object) -> str:
    """A value as the shell and YAML read it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _file(path: str, text: str) -> Iterable[str]:
    if _END in text.splitlines():
        raise CloudError(f"a line of {Path(path).name} is {_END}, which ends the file on the machine; change that line")
    return [f"cat > {path} << '{_END}'", *text.rstrip("\n").split("\n"), _END]


def _refuse_secrets(name: str, text: str) -> None:
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, kind in _SECRETS:
            if re.search(pattern, line):
                # Not the line itself: this message may end up in a log.
                where = f"{name}, line {number}" if name != "settings" else f"{line.partition('=')[0]} of the machines"
                raise CloudError(
                    f"{where} looks like {kind}, and machines' settings can be read by many; put it into SSM Parameter "
                    "Store (wandb.parameter), or let a role grant the access"
                )
