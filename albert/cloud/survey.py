"""Everything that is known before a launch: what is there, what it costs, what is missing. Touches nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from albert.cloud.config import words
from albert.cloud.errors import KNOWN, explain
from albert.cloud.findings import Finding, Level
from albert.cloud.images import Image, find_image
from albert.cloud.machine_types import MachineType, read_types
from albert.cloud.names import Kind
from albert.cloud.places import Places, check_key, check_places, find_places
from albert.cloud.prices import SpotPrices, read_on_demand_price, read_spot_prices
from albert.cloud.quota import check_quotas
from albert.cloud.rights import check_rights
from albert.cloud.run import Charter, Run, now, settings_digest
from albert.cloud.security_group import wanted_rules
from albert.cloud.sources import check_sources, find_commit
from albert.cloud.swarm_settings import check_swarm, swarm_settings
from albert.cloud.user_data import LIMIT, user_data
from btard.harness.typed_yaml import ConfigError

T = TypeVar("T")
F = TypeVar("F")


@dataclass
class Survey:
    """What was found; an unknown part is None or empty, and has a finding that says why."""

    run: Run
    time: datetime
    places: Places | None = None
    types: dict[str, MachineType] = field(default_factory=dict)
    images: dict[Kind, Image] = field(default_factory=dict)
    swarm_settings: str = ""
    commit: str = ""
    spot_prices: SpotPrices | None = None
    on_demand_prices: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def obstacles(self) -> list[Finding]:
        """The reasons to refuse a launch."""
        return [finding for finding in self.findings if finding.level == "stop"]

    def charter(self) -> Charter:
        """What a first launch would now decide. Only without obstacles."""
        return Charter(
            started=self.time,
            ends=self.time + timedelta(hours=self.run.config.max_hours),
            settings=settings_digest(self.run, self.swarm_settings),
            commit=self.commit,
            images={kind: image.id for kind, image in self.images.items()},
        )

    def attempt(self, topic: str, find: Callable[[], T], fallback: F, level: Level = "stop") -> T | F:
        """Return what `find` finds, or `fallback` and a finding of the given level if it fails."""
        try:
            return find()
        except KNOWN as error:
            self.findings.append(Finding(level, topic, *_halves(str(explain(error)))))
        except ConfigError as error:
            self.findings.append(Finding(level, topic, *_halves(str(error))))
        return fallback


def survey(run: Run) -> Survey:
    """Return everything that must be known before a launch. Raises CloudError without credentials that AWS accepts."""
    number, arn = run.account.caller
    config, found = run.config, Survey(run, now())
    found.findings.append(Finding("ok", "caller", f"{arn}, account {number}, region {run.account.region}"))
    found.places = found.attempt("subnets", lambda: find_places(run), None)
    if found.places is not None:
        places = found.places
        found.findings += found.attempt("subnets", lambda: check_places(run, places), [])
    found.types = found.attempt("types", lambda: read_types(run), {})
    _look_at_image(found, "coordinator", "coordinator.image", config.coordinator.image, config.coordinator.disk_gb)
    _look_at_image(found, "trainer", "trainers.image", config.trainers.image, config.trainers.disk_gb)
    if found.types:
        found.findings += found.attempt("quota", lambda: check_quotas(run, found.types), [], "note")
    found.findings += found.attempt(
        "rights", lambda: check_rights(run, found.places, found.images.get("coordinator")), [], "note"
    )
    _look_at_sources(found)
    _look_at_prices(found)
    return found


def survey_prices(run: Run) -> Survey:
    """Return only the present prices, with findings about unknown ones. Errors as above."""
    found = Survey(run, now())
    found.places = found.attempt("subnets", lambda: find_places(run), None)
    _look_at_prices(found)
    return found


def _look_at_image(found: Survey, kind: Kind, key: str, wanted: str, disk_gb: int) -> None:
    image = found.attempt("image", lambda: find_image(found.run.account, wanted, key, disk_gb), None)
    if image is not None:
        found.images[kind] = image
        found.findings.append(Finding("ok", "image", f"{kind}: {image.id} {image.name}"))


def _look_at_sources(found: Survey) -> None:
    run = found.run
    found.commit = found.attempt("code", lambda: find_commit(run), "")
    if found.commit and run.config.code.repository:
        found.findings.append(Finding("ok", "code", f"{run.config.code.repository} at {found.commit}"))
    found.findings += found.attempt("sources", lambda: check_sources(run), [])
    found.swarm_settings = found.attempt("settings", lambda: swarm_settings(run.config), "")
    if found.swarm_settings:
        found.findings += found.attempt("settings", lambda: check_swarm(run, found.types), [])
        size = found.attempt("settings", lambda: _script_size(found), None)
        if size is not None:
            text = f"{run.config.swarm.config} goes along; {size} of {LIMIT} bytes of start-up script used"
            found.findings.append(Finding("ok", "settings", text))
    key = found.attempt("ssh", lambda: check_key(run), None)
    if key is not None:
        found.findings.append(key)
        if key.level == "ok" and run.config.network.ssh_key is not None:
            found.attempt("ssh", lambda: wanted_rules(run), None)


def _script_size(found: Survey) -> int:
    charter = found.charter()
    scripts = (user_data(found.run, role, charter, found.swarm_settings) for role in found.run.sizes)
    return max(len(script.encode()) for script in scripts)


def _look_at_prices(found: Survey) -> None:
    run, config = found.run, found.run.config
    types = words(config.trainers.types)
    if found.places is not None and config.trainers.spot:
        zones, since = found.places.zones, found.time - timedelta(days=1)
        found.spot_prices = found.attempt(
            "prices", lambda: read_spot_prices(run.account, types, zones, since), None, "note"
        )
    asked = [] if config.coordinator.price is not None else [config.coordinator.type]
    asked += [] if config.trainers.spot else list(types)
    for name in asked:
        _look_at_on_demand_price(found, name)
    if config.coordinator.price is not None:
        found.on_demand_prices[config.coordinator.type] = config.coordinator.price


def _look_at_on_demand_price(found: Survey, name: str) -> None:
    account, coordinator = found.run.account, found.run.config.coordinator.type
    price = found.attempt("prices", lambda: read_on_demand_price(account, name), None, "note")
    if price is not None:
        found.on_demand_prices[name] = price
    else:
        advice = "set coordinator.price" if name == coordinator else "look it up in AWS's price list"
        found.findings.append(Finding("note", "prices", f"no on-demand price of {name}", advice))


def _halves(line: str) -> tuple[str, str]:
    """What was found, and what to do, which our one-line errors have after the last semicolon."""
    problem, _, advice = line.rpartition("; ")
    return (problem, advice) if problem else (advice, "")
