"""The swarm's own settings: read locally, so that 17 machines do not find the same mistake, and sent to them."""

import re
from pathlib import Path
from typing import Any

import yaml

from albert.cloud.config import OPTIONS, CodeConfig, Config, words
from albert.cloud.findings import Finding
from albert.cloud.machine_types import MachineType
from albert.cloud.run import Run
from albert.cloud.start import check_start
from albert.cloud.user_data import options
from albert.config import Config as SwarmConfig
from btard.harness.typed_yaml import converted, read_settings, settings_of

CHECKOUT = Path(__file__).parents[2]
CALIBRATE = "python -m albert.calibrate on one of these machines says whether it repeats its bits, and the tolerance"


def swarm_settings(config: Config) -> str:
    """Return the file that the machines get: that of swarm.config with what it is based on, by dotted keys.

    Raises ConfigError for a missing file, a key that does not exist, or a value of the wrong type.
    """
    settings = read_settings(Path(config.swarm.config), SwarmConfig)
    converted(settings, SwarmConfig)
    return yaml.safe_dump({key: setting.value for key, setting in settings.items()}, sort_keys=True)


def effective_settings(run: Run) -> dict[str, Any]:
    """Return what a trainer will have of them, by dotted key, without defaults. Raises ConfigError as above."""
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
    findings += check_validation(run, settings, trainers)
    return findings


def check_validation(run: Run, settings: dict[str, Any], trainers: list[MachineType]) -> list[Finding]:
    """Return how validators compare on these machines, what that demands of them, and what does not meet it."""
    findings = []
    gpus = " or ".join(sorted({machine.gpu for machine in trainers})) or "these machines"
    if settings.get("protocol.validation", "exact") == "exact":
        demands = "needs no tolerance; demands equal GPUs, images, versions, threads, precision, batch.per_device"
        findings.append(Finding("ok", "validation", f"exact, on {gpus}: {demands}", CALIBRATE))
        if not pins_torch(run.config.code):
            found = "PyTorch's version is not pinned: machines that replace others later may install another one"
            advice = "set code.requirements requirements-tested.txt, or code.packages torch==VERSION"
            findings.append(Finding("note", "validation", found, advice))
        exact = "with protocol.validation exact, peers must compute the same bits"
        if len({machine.gpu for machine in trainers}) > 1:
            advice = "take types with one kind of GPU, or swarm.options.protocol.validation tolerant"
            findings.append(Finding("stop", "settings", f"{exact}, and trainers.types have different GPUs", advice))
        if len({machine.vcpus for machine in trainers}) > 1 and settings.get("threads") is None:
            advice = "set swarm.options.threads, for example to 2"
            findings.append(Finding("note", "settings", f"{exact}, and trainers.types have more or fewer CPUs", advice))
    elif settings.get("protocol.gradient_tol") is None:
        found = f"tolerant, on {gpus}, and protocol.gradient_tol is the default: too low bans honest peers"
        findings.append(Finding("note", "validation", found, CALIBRATE))
    else:
        tol = settings["protocol.gradient_tol"]
        findings.append(
            Finding("ok", "validation", f"tolerant, on {gpus}, above protocol.gradient_tol {tol}", CALIBRATE)
        )
    return findings


def pins_torch(code: CodeConfig) -> bool:
    """Return whether what machines install says which version of PyTorch, as far as this checkout shows."""
    texts = [code.packages.replace(" ", "\n")]
    file = CHECKOUT / (code.requirements or "")
    if code.repository is not None and file.is_file():
        texts.append(file.read_text(encoding="utf-8"))
    return any(re.search(r"^torch==\S", text, re.MULTILINE) for text in texts)
