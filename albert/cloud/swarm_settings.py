"""The swarm's own settings: read here, so that 17 machines do not find the same mistake, and sent along to them."""

from pathlib import Path
from typing import Any

import yaml

from albert.cloud.config import OPTIONS, Config, words
from albert.cloud.findings import Finding
from albert.cloud.machine_types import MachineType
from albert.cloud.run import Run
from albert.cloud.start import check_start
from albert.cloud.user_data import options
from albert.config import Config as SwarmConfig
from btard.harness.typed_yaml import converted, read_settings, settings_of


def swarm_settings(config: Config) -> str:
    """Return the file that the machines get: that of swarm.config with what it is based on, by dotted keys.

    Raises ConfigError for a missing file, a key that does not exist, or a value of the wrong type.
    """
    settings = read_settings(Path(config.swarm.config), SwarmConfig)
    converted(settings, SwarmConfig)
    return yaml.safe_dump({key: setting.value for key, setting in settings.items()}, sort_keys=True)


def effective_settings(run: Run) -> dict[str, Any]:
    """Return what a trainer will have of them, by dotted key, but for defaults. Raises ConfigError as above."""
    file = read_settings(Path(run.config.swarm.config), SwarmConfig)
    changes = settings_of(dict(options(run, "honest")), SwarmConfig, OPTIONS)
    return converted(file | changes, SwarmConfig)


def check_swarm(run: Run, types: dict[str, MachineType]) -> list[Finding]:
    """Return what of the swarm's own settings does not go well with these machines, and of the checkpoint with them.

    Raises ConfigError as above.
    """
    settings = effective_settings(run)
    trainers = [types[name] for name in words(run.config.trainers.types) if name in types]
    findings = check_start(run, settings.get("steps", SwarmConfig.steps))
    start = settings.get("start_from")
    if start is not None and not str(start).startswith("/"):
        advice = "upload it, and set swarm.start_from to its address"
        findings.append(Finding("stop", "start", f"start_from is {start}, which no machine has", advice))
    if run.config.trainers.spot and settings.get("protocol.probation") is None:
        advice = "set swarm.options.protocol.probation, for example to 10"
        findings.append(Finding("note", "settings", "protocol.probation is null: replaced peers cannot join", advice))
    if settings.get("protocol.validation", "exact") == "exact":
        exact = "with protocol.validation exact, peers have to compute alike to the bit"
        if len({machine.gpu for machine in trainers}) > 1:
            advice = "take types with one kind of GPU, or swarm.options.protocol.validation tolerant"
            findings.append(Finding("stop", "settings", f"{exact}, and trainers.types have different GPUs", advice))
        if len({machine.vcpus for machine in trainers}) > 1 and settings.get("threads") is None:
            advice = "set swarm.options.threads, for example to 2"
            findings.append(Finding("note", "settings", f"{exact}, and trainers.types have more or fewer CPUs", advice))
    return findings
