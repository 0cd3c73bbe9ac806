"""The settings of a swarm, whatever it trains."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from btard.checks import require
from btard.harness.sections import AttackSection, ProtocolSection
from btard.protocol.attackers import draw_attackers
from btard.protocol.config import ProtocolConfig
from btard.swarm.deadlines import Deadlines

AWAY = 60.0
"""protocol.max_away of a swarm: a restart takes a peer some 10 seconds, however fast the others' steps are."""


@dataclass(frozen=True, kw_only=True)
class AttackConfig(AttackSection):
    """What the Byzantine peers do, and when."""

    peers: str | None = None
    """Numbers of the peers that attack, separated by commas. null: drawn from the seed, never peer 0."""
    join: bool | None = None
    """For one trainer: whether it attacks, whatever its number. null: attack.peers decides. It knows its fellows only
    from attack.peers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.peers is not None:
            numbers = [word.strip() for word in self.peers.split(",")]
            fits = all(word.isdigit() for word in numbers) and len(set(numbers)) == len(numbers)
            require(fits, "peers", "different numbers with commas between them", repr(self.peers), "such as 1,4,6")

    @property
    def listed(self) -> frozenset[int] | None:
        """The numbers in `peers`, None if there are none."""
        return None if self.peers is None else frozenset(map(int, self.peers.split(",")))


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Where this process listens, and which peers it knows."""

    initial_peers: str | None = None
    """Addresses of any peers in the swarm, separated by commas: /ip4/10.0.0.1/tcp/31337/p2p/12D3KooW... The
    coordinator prints its own. null: for the coordinator, which is the first."""
    host: str = "127.0.0.1"
    """IP to listen on. 0.0.0.0 for peers on other machines."""
    port: int = 0
    """Port to listen on. 0: any free port. Set it if a firewall or router must let others in."""
    announce: str | None = None
    """IP at which others reach this machine, if it differs from the one it listens on: a cloud's public IP, or that
    of a router that forwards network.port to the same port here."""
    relay: Literal["none", "use", "serve"] = "none"
    """use: for a peer behind a NAT or firewall that admits nobody: others reach it through those of
    network.initial_peers that serve. serve: for machines that everybody can reach, above all the coordinator: forward
    what such peers and others say to each other. none: if every peer can reach every other."""
    identity: str | None = None
    """File with this peer's key, created if it is missing. null: identity.key in the run folder. Set it to be the
    same peer in another folder."""
    founders: str | None = None
    """File with the public keys of the first peers, a line of 64 hexadecimal digits each, in the order of their
    numbers. Set it if the coordinator should not choose them. null: the coordinator lists the first that come."""

    def __post_init__(self) -> None:
        require(0 <= self.port < 2**16, "port", ">= 0 and < 65536", self.port, "0 is any that is free")
        fits = self.announce is None or self.port > 0
        require(fits, "announce", "null without network.port", self.announce, "give the port that others reach")
        if self.relay == "use":
            known, alone = self.initial_peers is not None, self.announce is None
            require(known, "relay", "none or serve without network.initial_peers", "use", "name the relays there")
            require(alone, "announce", "null with network.relay use", self.announce, "a reachable peer needs no relay")

    @property
    def addresses(self) -> tuple[str, ...]:
        """`initial_peers`, one by one."""
        return tuple(word.strip() for word in (self.initial_peers or "").split(",") if word.strip())


MOST = 500
"""Peers of a swarm: each has a connection to every other, and libp2p's daemon closes connections above 512."""


@dataclass(frozen=True, kw_only=True)
class SwarmConfig:
    """One swarm, and one process of it, whatever it trains: a task extends this class with its own settings."""

    free_to_change: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint_every", "wandb"}
        | {f"network.{item.name}" for item in fields(NetworkConfig)}
        | {f"deadlines.{item.name}" for item in fields(Deadlines)}
    )

    renamed: ClassVar[dict[str, str]] = {
        "validators": "protocol.validators",
        "deadlines.transfer": "deadlines.uplink (in Mbit/s of the slowest line)",
    }
    elsewhere: ClassVar[dict[str, str]] = {
        "baseline": "a series of swarms: python -m albert.experiments {file} --out DIR",
        "experiments": "a grid of runs: python -m resnet.sweep {file} --out DIR",
        "trainers": "the description of a swarm on AWS: python -m albert.cloud plan {file}",
        "aggregator": "the configuration of a ResNet run: python -m resnet.train {file} --out RUN_DIR",
    }
    common: ClassVar[tuple[str, ...]] = (
        *("peers", "byzantine", "steps", "seed", "attack.name", "attack.start", "protocol.tau"),
        *("network.initial_peers", "network.port", "network.announce"),
    )

    run_id: str = "swarm"
    """Names the run in every hash and signature. Another run needs another name, or its messages could be replayed."""
    peers: int = 16
    """Peers at the start (n): this many must come before the run begins."""
    byzantine: int = 0
    """How many of them may be Byzantine (b), and how many are if attack.name is set. A larger number costs more message
    delays only where peers withhold signatures or contradict themselves (protocol.relays)."""
    steps: int = 1250
    """Steps after which the run ends."""
    seed: int = 0
    """Seeds the initial model and the choice of Byzantine peers. Another seed repeats an experiment independently."""
    peer: int | None = None
    """For one trainer: its number, in a simulation in which every key follows from run_id and number. null: it has
    its own key, as in every real swarm."""
    code: str | None = None
    """The installed commit, if peers should compare it before they talk. null: they do not. Machines on AWS
    set it."""
    start_from: str | None = None
    """A checkpoint to begin from instead of new parameters, equal at all peers: an attack run continues from it."""
    checkpoint_every: int = 50
    """Steps between two checkpoints: what is lost if all peers stop. The coordinator measures the validation loss of
    its checkpoints."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one. cpu if the GPU has too little memory; then the other peers need protocol.validation
    tolerant, or cpu, too."""
    threads: int | None = None
    """CPU threads. null: what torch chooses. Exact validation needs the same number at all peers."""
    wandb: str | None = None
    """The coordinator's project at Weights & Biases. null: none. WANDB_MODE=offline works."""
    protocol: ProtocolSection = field(default_factory=lambda: ProtocolSection(max_away=AWAY))
    attack: AttackConfig = field(default_factory=AttackConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    deadlines: Deadlines = field(default_factory=Deadlines)

    def __post_init__(self) -> None:
        for name in ("peers", "steps", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name), "give a positive number")
        require(
            bool(self.run_id) and len(self.run_id) <= 80, "run_id", "1 to 80 characters", self.run_id, "choose a name"
        )
        require(0 <= self.seed < 2**63, "seed", ">= 0 and < 2**63", self.seed, "any such number works")
        require(self.threads is None or self.threads >= 1, "threads", ">= 1 or null", self.threads, "null: automatic")
        require(self.peers <= MOST, "peers", f"<= {MOST}", self.peers, "the network keeps no more connections")
        n, b, number, rule = self.peers, self.byzantine, self.peer, f">= 0 and < peers / 2 = {self.peers / 2:g}"
        require(0 <= 2 * b < n, "byzantine", rule, b, "the honest must be the majority", beside="peers")
        fits = number is None or 0 <= number < n
        require(fits, "peer", f">= 0 and < peers = {n}, or null", number, "see --help", beside="peers")
        self.protocol.check(peers=n, byzantine=b, run_id=self.run_id)
        listed = self.attack.listed
        if self.attack.name is not None and listed is not None:
            rule = f"{b} numbers (byzantine) below {n} (peers)"
            fits = len(listed) == b and max(listed) < n
            require(fits, "attack.peers", rule, self.attack.peers, "list as many as there are")
        self.attack.check(peers=n, byzantine=b, validators=self.protocol.validators, steps=self.steps)

    @property
    def tolerated(self) -> int:
        """How many Byzantine peers the protocol is made for."""
        return self.byzantine if self.protocol.byzantine is None else self.protocol.byzantine

    def protocol_config(self) -> ProtocolConfig:
        """The `ProtocolConfig` that all peers agree on."""
        return self.protocol.config(peers=self.peers, byzantine=self.byzantine, run_id=self.run_id)

    def attackers(self) -> frozenset[int]:
        """Numbers of the peers that attack; nobody without an attack. The seed draws them, and never peer 0."""
        if self.attack.name is None:
            return frozenset()
        listed = self.attack.listed
        return draw_attackers(self.peers, self.byzantine, self.seed) if listed is None else listed

    def agreed(self) -> dict[str, Any]:
        """The settings that all peers must share, by dotted key: JSON values.

        A task that has more of them extends it.
        """
        names = ("peers", "byzantine", "steps", "seed")
        shared = {name: getattr(self, name) for name in names} | section_of(self, "protocol")
        if self.protocol.validation == "exact":
            shared["threads"] = self.threads
        if self.code is not None:
            shared["code"] = self.code
        return as_json(shared)


def section_of(config: SwarmConfig, name: str) -> dict[str, Any]:
    """The settings of a section by dotted key."""
    return {f"{name}.{key}": value for key, value in asdict(getattr(config, name)).items()}


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with floats as text: JSON has no infinity, and text is equal where the numbers are."""
    return {name: str(value) if isinstance(value, float) else value for name, value in settings.items()}
