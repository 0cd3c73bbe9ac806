"""The settings of a ResNet-18 experiment. The defaults are the paper's, and configs/resnet/paper_defaults.yaml."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from btard.harness import settings
from btard.harness.typed_yaml import AnyPath, FieldError, nearest, require

AggregatorName = Literal[
    "btard",
    "mean",
    "coordinate_median",
    "trimmed_mean",
    "geometric_median",
    "krum",
    "multi_krum",
    "bulyan",
    "centered_clip",
]
AttackOption = int | float | bool | str


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: ResNet-18 with the stem for small images."""

    width: int = 64
    """Channels of the first stage. 64 is the standard ResNet-18 (11.2 M parameters), 16 has 0.7 M. Lower it on CPUs."""

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", ">= 1", self.width, "64 is the standard network")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned."""

    name: Literal["cifar10", "folder", "digits"] = "cifar10"
    """cifar10 is downloaded if needed, folder is an image-folder tree or a tar archive of one, digits is embedded."""
    path: str | None = None
    """cifar10: the folder that has it or that it is downloaded into, null is a cache. folder: the tree or archive."""
    label: str | None = None
    """What figures and tables call the data. null: its name. Set it for a folder of your own."""

    def __post_init__(self) -> None:
        if self.name == "folder":
            require(self.path is not None, "path", "set if data.name is folder", "null", "give a folder or an archive")


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """What the Byzantine peers do, and when."""

    name: str | None = None
    """An attack of btard.attacks, such as sign_flip or alie. null: nobody attacks."""
    start: int = 1000
    """First step of the attack: late enough for a model that has learned something to lose."""
    every: int = 1
    """Act at every so-many-th step from the start on. More than 1: caught later, for less harm."""
    stop: int | None = None
    """First step without the attack. null: it goes on to the end."""
    scale: float | None = None
    """Magnitude, for attacks that have one. null: the attack's own default. Lower it for attackers that are
    harder to tell from honest peers."""
    epsilon: float | None = None
    """Of ipm: the share of the honest mean that is pushed backwards; the paper uses 0.1 and 0.6. null: its default."""
    delay: int | None = None
    """Of delayed_gradient: the age of the gradients in steps. null: its default."""
    options: dict[str, AttackOption] = field(default_factory=dict)
    """Any other option of the attack by name: --attack.options.NAME VALUE. docs/attacks.md has them all."""

    def chosen(self) -> dict[str, AttackOption]:
        """The options to hand to `make_attack`, beside start and every."""
        named = {name: getattr(self, name) for name in ("stop", "scale", "epsilon", "delay")}
        return {name: value for name, value in named.items() if value is not None} | dict(self.options)

    def __post_init__(self) -> None:
        require(self.start >= 0, "start", ">= 0", self.start, "0 attacks from the first step on")
        require(self.every >= 1, "every", ">= 1", self.every, "1 attacks at every step")
        if self.stop is not None:
            require(self.stop > self.start, "stop", f"> attack.start = {self.start}", self.stop, "null is never")
        if self.name is not None:
            self._check_names(self.name)

    def _check_names(self, name: str) -> None:
        # Here, not above: only a run with an attack pays for importing torch.
        from btard.attacks.registry import ATTACKS, options_of

        require(name in ATTACKS, "name", f"null or one of {', '.join(ATTACKS)}", name, nearest(name, ATTACKS))
        known = [info.name for info in options_of(ATTACKS[name])]
        for option in self.chosen():
            if option not in known:
                place = option if option in {f.name for f in fields(self)} else f"options.{option}"
                raise FieldError(place, f"is no option of {name}, which has {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class AggregatorConfig:
    """How gradients become one."""

    name: AggregatorName = "btard"
    """btard: the protocol, without a server. Any other: that rule at a trusted server, where nobody is ever banned."""
    tau: float | Literal["auto"] = 1.0
    """Clipping radius of btard (per part of the butterfly) and centered_clip (whole gradient, so compare with about
    sqrt(peers) times it). inf is the mean. Lower it if accuracy dips under attack; the paper uses 1 and 10.
    auto, of btard: follows the distances between gradients and aggregate that peers reported in the step before."""
    tau_quantile: float = 0.5
    """btard, tau auto: which quantile of these distances. Below 0.5 more is clipped, and fewer liars are withstood."""
    byzantine: int | None = None
    """How many Byzantine peers the rule is made for: trimmed_mean, krum, multi_krum and bulyan depend on it, and the
    relays of btard. null: as many as there are. Set it to see what a defence costs when nobody attacks."""
    directions: int = 1
    """btard: random directions that each part's aggregate is checked on. More make a miss by chance rarer, and the
    reports longer."""
    delta_max: float | None = None
    """btard: a part is computed again by all if most workers are farther than this from its aggregate. null: follows
    the step. Set it if you know how far honest gradients are apart, to leave colluders less."""
    clip_lambda: float | None = None
    """btard: peers first scale their gradients to at most this norm (BTARD-Clipped-SGD). Lower it if the loss jumps.
    null: they do not."""
    validation: Literal["exact", "tolerant"] = "exact"
    """btard: exact compares hashes, for peers that compute alike to the bit. tolerant compares distances, for peers on
    different hardware; python -m resnet.calibrate proposes the tolerances."""
    gradient_tol: float = 0.1
    """btard, tolerant: relative error that honest peers' gradients of one batch stay within. Raise it if honest peers
    are banned for wrong_gradient; whatever is within it passes for honest."""
    cosine_tol: float | None = None
    """btard, tolerant: the same for 1 - cosine. Set it to catch gradients that differ in their direction alone. null:
    directions are not compared apart."""
    relays: int | None = None
    """btard: rounds in which peers pass on what others may not have heard. null: as many as there are Byzantine peers,
    which keeps honest peers in agreement whatever these do. Fewer are quicker with a process per peer."""

    def __post_init__(self) -> None:
        if isinstance(self.tau, str):
            fix = "only the peers of btard report the distances that auto follows"
            require(self.name == "btard", "tau", f"a number with aggregator.name {self.name}", self.tau, fix)
        else:
            require(self.tau > 0, "tau", "> 0", self.tau, "use inf for the plain mean")
        quantile = self.tau_quantile
        require(0 < quantile <= 0.5, "tau_quantile", "> 0 and <= 0.5", quantile, "0.5 withstands the most liars")
        tol, cosine = self.gradient_tol, self.cosine_tol
        require(0 < tol < 0.5, "gradient_tol", "> 0 and < 0.5", tol, "at 0.5 a gradient of zero would pass")
        fits = cosine is None or 0 < cosine < 0.25
        require(fits, "cosine_tol", "> 0 and < 0.25, or null", cosine, "null is no check")
        require(self.directions >= 1, "directions", ">= 1", self.directions, "1 is the paper's protocol")
        for name in ("delta_max", "clip_lambda"):
            value = getattr(self, name)
            require(value is None or value > 0, name, "> 0 or null", value, "null is the default")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD with momentum and a cosine schedule."""

    lr: float = 0.01
    """Learning rate at the start. Lower it if the loss jumps."""
    momentum: float = 0.9
    """Nesterov momentum. 0: none. With more of it an attack is felt for longer after its end."""
    weight_decay: float = 5e-4
    """L2 penalty. Raise it if the test accuracy falls behind that of the training."""
    schedule_steps: int | None = None
    """The learning rate falls to 0 along a cosine over so many steps. null: over all steps of the run.
    Set it where a run is only the beginning of a longer one."""

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "lr", "> 0 and finite", self.lr, "the paper uses 0.01")
        require(0 <= self.momentum < 1, "momentum", ">= 0 and < 1", self.momentum, "the paper uses 0.9")
        require(0 <= self.weight_decay < math.inf, "weight_decay", ">= 0 and finite", self.weight_decay, "0 is none")
        steps = self.schedule_steps
        require(steps is None or steps >= 1, "schedule_steps", ">= 1 or null", steps, "null: the run's steps")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    free_to_change: ClassVar[frozenset[str]] = frozenset({"checkpoint_every", "timeout"})

    peers: int = 16
    """Simulated peers (n). The time of a step follows it."""
    byzantine: int = 0
    """How many of them are Byzantine (b): less than half. The seed draws who; peer 0 never is, it evaluates."""
    validators: int = 1
    """Peers per step that check another one's work of the step before instead of computing (m). Only btard has them.
    More catch attackers sooner, for as many gradients less per step."""
    steps: int = 25_000
    """Training steps. The learning rate's cosine is as long, if optimizer.schedule_steps does not say otherwise."""
    seed: int = 0
    """Seeds the initial model, who is Byzantine, every batch and every coin. Another one repeats an experiment
    independently."""
    batch_size: int = 8
    """Samples per peer and step. Lower it if the memory does not suffice."""
    eval_every: int = 50
    """Steps between two measurements of the test accuracy. The last step always has one. Raise it if they take a large
    share of the time."""
    test_samples: int | None = None
    """How many test images accuracy is measured on. null: all. Set it for measurements that are quicker and noisier."""
    checkpoint_every: int = 500
    """Steps between two checkpoints: what an interruption can cost. A checkpoint has the last step's gradients."""
    mode: Literal["batched", "per_peer"] = "batched"
    """batched: all peers' gradients at once. per_peer: one by one, bit-equal to what a lone peer computes; slower."""
    commitments: Literal["hashed", "ideal"] = "hashed"
    """ideal: tensors stand for themselves and are not read for it. The same bans and parameters, sooner, and nothing to
    audit; for simulations in one process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one. cpu if its memory does not suffice."""
    timeout: float = 120.0
    """Seconds that the processes of a run under torchrun wait for one that does not answer. Slow steps want more."""
    threads: int | None = None
    """CPU threads. null: what torch chooses. Results are bit-equal for equal numbers only."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    @property
    def schedule_steps(self) -> int:
        """Length of the learning rate's cosine."""
        return self.optimizer.schedule_steps or self.steps

    @property
    def tolerated(self) -> int:
        """How many Byzantine peers the aggregator is made for."""
        return self.byzantine if self.aggregator.byzantine is None else self.aggregator.byzantine

    def __post_init__(self) -> None:
        for name in ("peers", "steps", "batch_size", "eval_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name), "give a positive number")
        samples = self.test_samples
        require(samples is None or samples >= 1, "test_samples", ">= 1 or null", samples, "null: all test images")
        require(self.threads is None or self.threads >= 1, "threads", ">= 1 or null", self.threads, "null: automatic")
        require(0 < self.timeout < math.inf, "timeout", "> 0 and finite", self.timeout, "120 is two minutes")
        require(0 <= self.seed < 2**63, "seed", ">= 0 and < 2**63", self.seed, "any such number will do")
        n, b, m = self.peers, self.byzantine, self.validators
        require(0 <= 2 * b < n, "byzantine", f">= 0 and < peers / 2 = {n / 2:g}", b, "the honest must be the majority")
        made_for, rule = self.tolerated, f">= 0 and < peers / 2 = {n / 2:g}"
        require(0 <= 2 * made_for < n, "aggregator.byzantine", rule, made_for, "null: as many as there are")
        if self.aggregator.name == "btard":
            most = f">= 0 and at most (peers - 1) / 2 = {(n - 1) // 2}"
            require(0 <= 2 * m < n, "validators", most, m, "every validator needs a target among the workers")
            share, auto = self.aggregator.tau_quantile, self.aggregator.tau == "auto"
            rule = f"> aggregator.byzantine / (peers - validators) = {made_for / (n - m):.3g}"
            fits = not auto or not made_for or made_for < share * (n - m)
            require(fits, "aggregator.tau_quantile", rule, share, "or else liars choose tau; 0.5 is the most")
            relays = self.aggregator.relays
            fits = relays is None or 0 <= relays < n
            require(fits, "aggregator.relays", f">= 0 and < peers = {n}, or null", relays, "null is the safe choice")
        self._check_attack(b)

    def _check_attack(self, byzantine: int) -> None:
        # Either alone would silently be a run without attack, which somebody would take for one with it.
        name, start = self.attack.name, self.attack.start
        if name is None:
            require(byzantine == 0, "byzantine", "0 without an attack", byzantine, "set attack.name, or byzantine to 0")
            return
        require(byzantine > 0, "byzantine", f"> 0 with the attack {name}", byzantine, "set it, or attack.name to null")
        rule = f"< steps = {self.steps}"
        require(start < self.steps, "attack.start", rule, start, "start earlier, or the run sees no attack")
        from btard.attacks.registry import make_attack
        from btard.protocol.collusion import Collusion

        try:  # Attacks know best which values they allow, and some depend on the numbers of peers.
            cohort = Collusion(frozenset(range(1, 1 + byzantine)), self.peers)
            chosen: dict[str, Any] = {"start": start, "every": self.attack.every, **self.attack.chosen()}
            validators = self.validators if self.aggregator.name == "btard" else 0
            make_attack(name, cohort, **chosen).check_validators(validators)
        except ValueError as error:
            raise FieldError("attack", f"has a value that does not work: {error}") from None


ABOUT = """Trains as CONFIG.yaml says, with these keys changed, and writes the run to RUN_DIR. The same command goes on
with an interrupted run."""


def load_config(argv: Sequence[str] | None = None, *, program: str = "python -m resnet.train") -> tuple[Config, Path]:
    """Return the settings and the run folder that `CONFIG.yaml --out RUN_DIR [--dotted.key value ...]` asks for.

    `argv` is by default the process's. Ends the process: with code 0 after --help, and with code 2 after one line on
    stderr if a key, a value or a file is wrong.
    """
    return settings.load_config(Config, argv, program, ABOUT)


def parse_command_line(words: Sequence[str], program: str) -> tuple[Config, Path]:
    """As `load_config`, without ending the process: raises ConfigError."""
    return settings.parse_command_line(Config, words, program)


def read_config(path: AnyPath) -> Config:
    """Return the settings in a YAML file; what it leaves out has its default. Raises ConfigError."""
    return settings.read_config(Config, path)
