"""The settings of a recorded run and the public keys of its first peers: what an auditor reads first."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

from btard.audit.encoding import check_array, check_hex, check_object
from btard.audit.files import PROTOCOL, ROSTER, read_json, write_json
from btard.audit.numerics import MAX_PLATFORM
from btard.protocol import wire
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import PROTOCOL_VERSION
from btard.protocol.identity import Roster
from btard.protocol.wire import Malformed

FIELDS = {"version", "d", "config", "task", "platform"}
"""Of protocol.json."""


def write_settings(
    folder: Path, config: ProtocolConfig, d: int, roster: Roster, task: str = "", platform: str = ""
) -> None:
    """The two files that `read_settings` reads.

    `task`: module:function that makes the run's task of its folder; `platform`: see `numerics.py`.
    """
    said = {"d": d, "config": asdict(config), "task": task, "platform": platform}
    write_json(folder / PROTOCOL, {"version": PROTOCOL_VERSION, **said})
    # Of those who were there from the start: the keys of others stand in the ledger.
    write_json(folder / ROSTER, {"keys": [key.hex() for key in roster.keys[: config.peers]]})


def read_settings(folder: Path) -> tuple[ProtocolConfig, int, Roster]:
    """The run's settings, its number of parameters d, and its keys; Malformed names what is wrong."""
    content = read_json(folder / PROTOCOL)
    if content.get("version") != PROTOCOL_VERSION:
        found = ascii(content["version"]) if "version" in content else "none"
        raise Malformed(
            f"{PROTOCOL}: the run is of protocol version {found:.40}, this audits version {PROTOCOL_VERSION}; "
            "take the release that recorded it"
        )
    check_object(content, PROTOCOL, FIELDS)
    check_platform(content["platform"], PROTOCOL)
    d = content["d"]
    if type(d) is not int or not 1 <= d < 2**32:
        raise Malformed(f"{PROTOCOL}: d is {d!r:.40}")
    settings = check_object(content["config"], f"{PROTOCOL}: config")
    if unknown := sorted(settings.keys() - {item.name for item in fields(ProtocolConfig)}):
        raise Malformed(f"{PROTOCOL}: there is no setting {unknown[0]!a:.40}")
    for name, value in settings.items():
        if type(value) is int and abs(value) > 2**53:  # what is signed of it is a float
            raise Malformed(f"{PROTOCOL}: {name} must be within 2^53, got {value!a:.40}")
    config = wire.convert(settings, ProtocolConfig, PROTOCOL)
    try:
        config.run_id.encode()
    except UnicodeEncodeError as error:
        raise Malformed(f"{PROTOCOL}: run_id: {error}") from None
    keys = check_array(read_json(folder / ROSTER, {"keys"})["keys"], "keys")
    roster = Roster(tuple(check_hex(key, "key") for key in keys))
    if len(roster.keys) != config.peers or any(len(key) != 32 for key in roster.keys):
        raise Malformed(f"{ROSTER}: expected {config.peers} keys of 32 bytes, got {len(roster.keys)}")
    return config, d, roster


def check_size(folder: Path, d: int) -> None:
    """ValueError unless the run in `folder` has `d` parameters, those of its task; Malformed as of `read_settings`."""
    of_run = read_settings(folder)[1]
    if of_run != d:
        raise ValueError(f"it has {d} parameters, the run {of_run}")


def check_platform(value: object, what: str) -> str:
    """The name of a numeric platform, of those of hostile files; Malformed if it is none."""
    if not isinstance(value, str) or len(value) > MAX_PLATFORM:
        raise Malformed(f"{what}: platform must be at most {MAX_PLATFORM} characters, got {value!a:.40}")
    return value


def read_task(folder: Path) -> str:
    """The module:function that is said to make the run's task, or nothing; Malformed if the file is not in order."""
    name = read_json(folder / PROTOCOL, FIELDS)["task"]
    if not isinstance(name, str):
        raise Malformed(f"{PROTOCOL}: task must be module:function, got {name!a:.40}")
    return name
