"""The settings of a swarm, whatever it trains."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal

from btard.harness.typed_yaml import FieldError, nearest, require
from btard.swarm.deadlines import Deadlines

AttackOption = int | float | bool | str


@dataclass(frozen=True, kw_only=True)
class ProtocolSettings:
    """What peers do to keep each other honest."""

    tau: float | Literal["auto"] = 0.125
    """Clipping radius of CenteredClip on each part. inf is the mean. auto follows the distances that peers report.
    Lower it if the loss rises under attack, raise it if without one it falls slower than with the mean."""
    clip_lambda: float | None = 1.0
    """BTARD-Clipped-SGD: peers scale their gradients to at most this norm. Lower it if the loss jumps. null: they do
    not."""
    validation: Literal["exact", "tolerant"] = "exact"
    """exact: peers compute alike to the bit, as on equal machines. tolerant: for peers on different hardware, or with
    different versions of PyTorch."""
    gradient_tol: float = 0.1
    """tolerant: relative error that honest peers' gradients of one batch stay within. Raise it if honest peers are
    banned for wrong_gradient; whatever is within it passes for honest."""
    cosine_tol: float | None = None
    """tolerant: the same for 1 - cosine. Set it to catch gradients that differ in their direction alone. null:
    directions are not compared apart."""
    relays: int | None = None
    """Rounds in which peers pass on what others may not have heard. null: as many as may be Byzantine, which no liar
    can get around; each costs a round trip in each of some six phases. Lower it if the round trips take a large share
    of a step and few peers would lie about who said what."""
    directions: int = 1
    """Random directions that each part's aggregate is checked on. More make a miss by chance rarer, and the reports
    longer."""
    delta_max: float | None = None
    """A part is computed again by all if most workers are farther than this from its aggregate. null: follows the step.
    Set it if you know how far honest gradients are apart, to leave colluders less."""
    max_absences: int = 3
    """Steps in a row that a peer may miss before it counts as gone. Raise it if peers need longer to restart."""
    probation: int | None = None
    """Steps that a newcomer computes before it counts: what a new identity costs. null: nobody can join after the
    start. Set it if peers are replaced, or strangers may come later; raise it if banned peers come back too cheaply."""


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """What the Byzantine peers do, and when."""

    name: str | None = None
    """An attack of btard.attacks, such as sign_flip. null: nobody attacks."""
    start: int = 1000
    """First step of the attack: after the warm-up, to see what it does to a model that has learned something."""
    every: int = 1
    """Act at every so-many-th step from the start on. More than 1: caught later, for less harm."""
    stop: int | None = None
    """First step without the attack. null: it goes on to the end."""
    options: dict[str, AttackOption] = field(default_factory=dict)
    """Options of the attack by name: --attack.options.NAME VALUE. docs/attacks.md has them all."""
    peers: str | None = None
    """Numbers of the peers that attack, with commas between them. null: drawn from the seed, never peer 0."""
    join: bool | None = None
    """Of one trainer: whether it attacks, whatever its number. null: attack.peers says. It knows its fellows from
    attack.peers alone."""

    def __post_init__(self) -> None:
        require(self.start >= 0, "start", ">= 0", self.start, "0 attacks from the first step on")
        require(self.every >= 1, "every", ">= 1", self.every, "1 attacks at every step")
        if self.stop is not None:
            require(self.stop > self.start, "stop", f"> attack.start = {self.start}", self.stop, "null is never")
        if self.peers is not None:
            numbers = [word.strip() for word in self.peers.split(",")]
            fits = all(word.isdigit() for word in numbers) and len(set(numbers)) == len(numbers)
            require(fits, "peers", "different numbers with commas between them", repr(self.peers), "such as 1,4,6")
        if self.name is not None:
            from btard.attacks.registry import ATTACKS, options_of  # only a run with an attack pays for importing torch

            known = ATTACKS
            require(
                self.name in known, "name", f"null or one of {', '.join(known)}", self.name, nearest(self.name, known)
            )
            options = [info.name for info in options_of(ATTACKS[self.name])]
            for option in self.options:
                if option not in options:
                    raise FieldError(
                        f"options.{option}", f"is no option of {self.name}, which has {', '.join(options)}"
                    )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Where this process listens, and whom it knows."""

    initial_peers: str | None = None
    """Addresses of anybody in the swarm, with commas between them: /ip4/10.0.0.1/tcp/31337/p2p/12D3KooW... The
    coordinator prints its own. null: for the coordinator, which is the first."""
    host: str = "127.0.0.1"
    """IP to listen on. 0.0.0.0 for peers on other machines."""
    port: int = 0
    """Port to listen on. 0: any that is free. Set it where a firewall or router has to let others in."""
    announce: str | None = None
    """IP at which others reach this machine, if it is another one than it listens on: a cloud's public IP, or that of a
    router that forwards network.port to the same port here."""
    relay: Literal["none", "use", "serve"] = "none"
    """use: for a peer behind a NAT or firewall that lets nobody in: others reach it through those of
    network.initial_peers that serve. serve: for machines that everybody reaches, the coordinator first of all: pass on
    what such peers and others say to each other. none: where every peer can reach every other."""
    identity: str | None = None
    """File with this peer's key, made if it is missing. null: identity.key in the run folder. Set it to be the same
    peer in another folder."""
    founders: str | None = None
    """File with the public keys of the first peers, a line of 64 hexadecimal digits each, in the order of their
    numbers. Set it if the coordinator is not to choose who they are. null: it lists those who come first."""

    def __post_init__(self) -> None:
        require(0 <= self.port < 2**16, "port", ">= 0 and < 65536", self.port, "0 is any that is free")
        fits = self.announce is None or self.port > 0
        require(fits, "announce", "null without network.port", self.announce, "give the port that others reach")
        if self.relay == "use":
            known, alone = self.initial_peers is not None, self.announce is None
            require(known, "relay", "none or serve without network.initial_peers", "use", "name the relays there")
            require(alone, "announce", "null with network.relay use", self.announce, "who is reached needs no relay")

    @property
    def addresses(self) -> tuple[str, ...]:
        """`initial_peers`, one by one."""
        return tuple(word.strip() for word in (self.initial_peers or "").split(",") if word.strip())


@dataclass(frozen=True, kw_only=True)
class SwarmConfig:
    """One swarm, and one process of it, whatever it trains: a task extends this class by its own settings."""

    free_to_change: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint_every", "wandb"}
        | {f"network.{item.name}" for item in fields(NetworkConfig)}
        | {f"deadlines.{item.name}" for item in fields(Deadlines)}
    )

    run_id: str = "swarm"
    """Names the run in every hash and signature. Another run needs another name, or its messages could be replayed."""
    peers: int = 16
    """Peers at the start (n): so many have to come before the run begins."""
    byzantine: int = 0
    """How many of them may be Byzantine (b), and how many are, where attack.name is set. More cost round trips
    (protocol.relays)."""
    validators: int = 1
    """Peers per step that check another one's work of the step before instead of computing (m). More catch attackers
    sooner, for as many gradients less per step."""
    steps: int = 1250
    """Steps after which the run ends."""
    seed: int = 0
    """Seeds the initial model and who is Byzantine. Another one repeats an experiment independently."""
    peer: int | None = None
    """Of one trainer: its number, in a simulation in which every key follows from run_id and number. null: it has a
    key of its own, as in every real swarm."""
    code: str | None = None
    """The commit that is installed, where peers are to compare it before they talk. null: they do not. Machines on AWS
    set it."""
    start_from: str | None = None
    """A checkpoint to begin from instead of new parameters, equal at all peers: an attack run goes on from it."""
    checkpoint_every: int = 50
    """Steps between two checkpoints: what is lost if all peers stop. The coordinator measures the validation loss of
    its own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one. cpu if its memory does not suffice; then other peers need protocol.validation
    tolerant, or cpu, too."""
    threads: int | None = None
    """CPU threads. null: what torch chooses. Exact validation needs equal numbers at all peers."""
    wandb: str | None = None
    """The coordinator's project at Weights & Biases. null: none. WANDB_MODE=offline works."""
    protocol: ProtocolSettings = field(default_factory=ProtocolSettings)
    attack: AttackConfig = field(default_factory=AttackConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    deadlines: Deadlines = field(default_factory=Deadlines)

    def __post_init__(self) -> None:
        for name in ("peers", "steps", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name), "give a positive number")
        require(
            bool(self.run_id) and len(self.run_id) <= 80, "run_id", "1 to 80 characters", self.run_id, "choose a name"
        )
        require(0 <= self.seed < 2**63, "seed", ">= 0 and < 2**63", self.seed, "any such number will do")
        require(self.threads is None or self.threads >= 1, "threads", ">= 1 or null", self.threads, "null: automatic")
        n, b, m = self.peers, self.byzantine, self.validators
        require(0 <= 2 * b < n, "byzantine", f">= 0 and < peers / 2 = {n / 2:g}", b, "the honest must be the majority")
        require(0 <= 2 * m < n, "validators", f">= 0 and at most (peers - 1) / 2 = {(n - 1) // 2}", m, "lower it")
        require(
            self.peer is None or 0 <= self.peer < n, "peer", f">= 0 and < peers = {n}, or null", self.peer, "see --help"
        )
        self._check_protocol()
        self._check_attack()

    def _check_protocol(self) -> None:
        try:
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said once, by whoever runs the protocol
                self.protocol_config()
        except ValueError as error:
            raise FieldError("protocol", f"has a value that does not work: {error}") from None

    def _check_attack(self) -> None:
        attack = self.attack
        if attack.name is None:
            return
        require(self.byzantine > 0, "byzantine", f"> 0 with the attack {attack.name}", self.byzantine, "set it")
        require(attack.start < self.steps, "attack.start", f"< steps = {self.steps}", attack.start, "start earlier")
        if attack.peers is not None:
            numbers = [int(word) for word in attack.peers.split(",")]
            fits = len(numbers) == self.byzantine and max(numbers) < self.peers
            rule = f"{self.byzantine} numbers (byzantine) below {self.peers} (peers)"
            require(fits, "attack.peers", rule, attack.peers, "list as many as there are")
        from btard.attacks.registry import make_attack
        from btard.protocol.collusion import Collusion

        try:
            cohort = Collusion(frozenset(range(1, 1 + self.byzantine)), self.peers)
            options: dict[str, Any] = {
                "start": attack.start,
                "every": attack.every,
                "stop": attack.stop,
                **attack.options,
            }
            make_attack(attack.name, cohort, **options).check_validators(self.validators)
        except ValueError as error:
            raise FieldError("attack", f"has a value that does not work: {error}") from None

    def protocol_config(self) -> Any:
        """The `ProtocolConfig` that all peers agree on."""
        from btard.protocol.config import ProtocolConfig

        chosen = {item.name: getattr(self.protocol, item.name) for item in fields(self.protocol)}
        return ProtocolConfig(
            peers=self.peers, byzantine=self.byzantine, validators=self.validators, run_id=self.run_id, **chosen
        )

    def attackers(self) -> frozenset[int]:
        """Numbers of the peers that attack; nobody without an attack. The seed draws them, and never peer 0."""
        if self.attack.name is None:
            return frozenset()
        if self.attack.peers is not None:
            return frozenset(int(word) for word in self.attack.peers.split(","))
        from btard.protocol.hashing import stream

        drawn = stream("byzantine peers", self.seed).choice(self.peers - 1, self.byzantine, replace=False)
        return frozenset(int(peer) + 1 for peer in drawn)

    def agreed(self) -> dict[str, Any]:
        """The settings that all peers have to have alike, by dotted key: JSON values.

        A task that has more of them extends it.
        """
        names = ("peers", "byzantine", "validators", "steps", "seed")
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
