"""The settings of a ResNet-18 experiment. The defaults are the paper's, and configs/resnet/paper_defaults.yaml."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal

from btard.checks import FieldError, require
from btard.harness import settings
from btard.harness.sections import AttackOption, AttackSection, ProtocolSection
from btard.harness.typed_yaml import nearest
from btard.protocol.attackers import draw_attackers
from btard.protocol.config import ProtocolConfig, ProtocolSettings

RULES = (
    "mean",
    "coordinate_median",
    "trimmed_mean",
    "geometric_median",
    "rfa",
    "krum",
    "multi_krum",
    "bulyan",
    "centered_clip",
    "clip_around_last",
)
"""The rules of `btard.aggregation`, which imports torch: only a run that trains pays for that."""
CLIPPING = ("centered_clip", "clip_around_last")
FOR_A_NUMBER = ("trimmed_mean", "krum", "multi_krum", "bulyan")
"""Rules whose result depends on how many Byzantine peers they are made for."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network: ResNet-18 with the stem for small images."""

    width: int = 64
    """Channels of the first stage. 64 is the standard ResNet-18 (11.2 M parameters), 16 has 0.7 M. Lower it on CPUs."""
    init: Literal["torch", "he"] = "torch"
    """Initial convolutions: torch, PyTorch's own, as in the authors' code; or he, He's normal initialisation."""

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", ">= 1", self.width, "64 is the standard network")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned."""

    name: Literal["cifar10", "folder", "digits"] = "cifar10"
    """cifar10 is downloaded if needed, folder is an image-folder tree or a tar archive of one, digits is embedded."""
    path: str | None = None
    """cifar10: the folder that has it or into which it is downloaded, null is a cache. folder: the tree or archive."""
    label: str | None = None
    """The name of the data in figures and tables. null: its name. Set it for a folder of your own."""
    digest: str | None = None
    """Digest of the images and labels, 64 hexadecimal digits. null: whatever is there; a run records it in its
    config.yaml and continues only with the same data. Set it to be sure of the training data."""

    def __post_init__(self) -> None:
        if self.name == "folder":
            require(self.path is not None, "path", "set if data.name is folder", "null", "give a folder or an archive")


@dataclass(frozen=True, kw_only=True)
class AttackConfig(AttackSection):
    """What the Byzantine peers do, and when."""

    shorthands: ClassVar[tuple[str, ...]] = ("scale", "epsilon", "delay")

    scale: float | None = None
    """Magnitude, for attacks that have one. null: the attack's own default. Lower it for attackers that are
    harder to tell from honest peers."""
    epsilon: float | None = None
    """For ipm: the share of the honest mean that is pushed backwards; the paper uses 0.1 and 0.6. null: its default."""
    delay: int | None = None
    """For delayed_gradient: the age of the gradients in steps. null: its default."""


@dataclass(frozen=True, kw_only=True)
class AggregatorConfig:
    """How gradients are aggregated."""

    name: str = "btard"
    """btard: the protocol, without a server, with the settings of the section protocol. emulated: as in the authors'
    code, parts clipped at protocol.tau and bans by chance. Any other: that rule at a trusted server, where nobody is
    ever banned; of the section protocol only clip_lambda counts then. Rules are mean, coordinate_median, trimmed_mean,
    geometric_median, rfa, krum, multi_krum, bulyan, centered_clip, clip_around_last, and your own by module:Class
    (docs/your-own-rule.md)."""
    radius: float = 1.0
    """centered_clip and clip_around_last: the clipping radius of whole gradients, so compare with about sqrt(peers)
    times protocol.tau. inf is the mean."""
    byzantine: int | None = None
    """trimmed_mean, krum, multi_krum, bulyan and mixing nnm: how many Byzantine peers the rule is made for. null: the
    real number. Set it to see what a defence costs when nobody attacks."""
    options: dict[str, AttackOption] = field(default_factory=dict)
    """Options that your own rule declares, by name: --aggregator.options.NAME VALUE (docs/your-own-rule.md)."""
    mixing: Literal["nnm", "bucketing"] | None = None
    """What a server does before its rule. nnm: each gradient becomes the mean of the peers - byzantine nearest ones.
    bucketing: random buckets of gradients become their means. Try nnm if honest peers differ a lot."""
    bucket: int = 2
    """bucketing: gradients per bucket. Larger buckets smooth out more and tolerate fewer Byzantine peers."""
    momentum: float = 0.0
    """Workers' momentum before a server's rule: peers send beta * momentum + (1 - beta) * gradient. 0: gradients.
    0.9 with clip_around_last is the defence of Karimireddy et al. (2021); then set optimizer.momentum to 0."""
    bans: Literal["independent", "pairs"] = "independent"
    """emulated: who is banned. independent, the authors' law: each attacker with a chance of (n - b)/n^2 per attack.
    pairs: protocol.validators honest peers each check another peer, drawn as in the protocol."""
    replace_banned: bool = True
    """emulated: an honest peer replaces a banned one, as in the authors' code. false: the cohort shrinks, as
    under the protocol, and with it the batch."""

    def __post_init__(self) -> None:
        require(self.radius > 0, "radius", "> 0", self.radius, "use inf for the plain mean")
        require(self.bucket >= 1, "bucket", ">= 1", self.bucket, "2 is what its authors recommend")
        require(0 <= self.momentum < 1, "momentum", ">= 0 and < 1", self.momentum, "its authors use 0.9")
        if self.own:
            from btard.drivers.rules import rule_class, rule_of  # imports torch, and somebody's module

            try:
                kind = rule_class(self.name)
            except ValueError as error:
                raise FieldError("name", f"{self.name} {error}") from None
            try:
                rule_of(kind, tau=self.radius, options=self.options)
            except FieldError as error:
                raise FieldError(f"options.{error.field}", error.message) from None
            except ValueError as error:
                raise FieldError("name", str(error)) from None
        elif self.name not in ("btard", "emulated", *RULES):
            fix = nearest(self.name, ("btard", "emulated", *RULES))
            raise FieldError(
                "name", f"must be btard, emulated, one of {', '.join(RULES)}, or module:Class, got {self.name!r}; {fix}"
            )
        if self.options and not self.own:
            first = f"options.{next(iter(self.options))}"
            raise FieldError(first, f"is for a rule of your own, module:Class; {self.name} has no options")
        if self.name == "btard" and self.byzantine is not None:
            raise FieldError("byzantine", "is protocol.byzantine where aggregator.name is btard")
        if self.name in ("btard", "emulated"):
            for key in ("mixing", "momentum"):
                if getattr(self, key):
                    raise FieldError(key, f"is for the rule of a server; set aggregator.name, which is {self.name}")
        for key in ("bans", "replace_banned"):
            if self.name != "emulated" and getattr(self, key) != getattr(type(self), key):
                raise FieldError(key, "is for aggregator.name emulated alone: the protocol draws and bans by itself")

    @property
    def own(self) -> bool:
        """Whether the rule is a user's own class."""
        return ":" in self.name

    @property
    def for_a_number(self) -> bool:
        """Whether its result depends on how many Byzantine peers it is made for."""
        return self.own or self.mixing == "nnm" or self.name in FOR_A_NUMBER


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD with momentum and a cosine schedule."""

    lr: float = 0.01
    """Learning rate at the start. Lower it if the loss jumps."""
    momentum: float = 0.9
    """Nesterov momentum. 0: none. The larger, the longer an attack has effect after its end."""
    weight_decay: float = 5e-4
    """L2 penalty. Raise it if the test accuracy falls behind that of the training."""
    schedule_steps: int | None = None
    """The learning rate falls to 0 along a cosine over this many steps. null: over all steps of the run.
    Set it if a run is only the beginning of a longer one."""

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
    elsewhere: ClassVar[dict[str, str]] = {
        "baseline": "a series of swarms: python -m albert.experiments {file} --out DIR",
        "experiments": "a grid of runs: python -m resnet.sweep {file} --out DIR",
        "trainers": "the description of a swarm on AWS: python -m albert.cloud plan {file}",
        "deadlines": "the configuration of a swarm: python -m albert.swarm {file} --out RUN_DIR",
        "batch": "the configuration of a swarm: python -m albert.swarm {file} --out RUN_DIR",
    }
    common: ClassVar[tuple[str, ...]] = (
        *("peers", "byzantine", "steps", "seed", "attack.name", "attack.start"),
        *("aggregator.name", "protocol.tau", "data.name", "data.path"),
    )
    found: ClassVar[frozenset[str]] = frozenset({"data.digest"})
    renamed: ClassVar[dict[str, str]] = {
        "validators": "protocol.validators",
        "aggregator.tau": "protocol.tau (for centered_clip aggregator.radius)",
        **{
            f"aggregator.{item.name}": f"protocol.{item.name}"
            for item in fields(ProtocolSettings)
            if item.name != "tau"
        },
    }

    peers: int = 16
    """Simulated peers (n). The time of a step is proportional to it."""
    byzantine: int = 0
    """How many of them are Byzantine (b): less than half. The seed draws which; never peer 0, which evaluates."""
    steps: int = 25_000
    """Training steps. The learning rate's cosine is as long, if optimizer.schedule_steps does not say otherwise."""
    seed: int = 0
    """Seeds the initial model, the choice of Byzantine peers, every batch and every coin. Another seed repeats an
    experiment independently."""
    batch_size: int = 8
    """Samples per peer and step. Lower it if the memory does not suffice."""
    eval_every: int = 50
    """Steps between two measurements of the test accuracy. The last step always has one. Raise it if they take a large
    share of the time."""
    test_samples: int | None = None
    """Number of test images for measuring accuracy. null: all. Set it for quicker and noisier measurements."""
    checkpoint_every: int = 500
    """Steps between two checkpoints: what an interruption can cost. A checkpoint has the last step's gradients."""
    mode: Literal["batched", "per_peer"] = "batched"
    """batched: all peers' gradients at once. per_peer: one by one, with the same bits as a lone peer; slower."""
    commitments: Literal["hashed", "ideal"] = "hashed"
    """ideal: tensors stand for themselves and are not read for it. The same bans and parameters, sooner, and nothing to
    audit; for simulations in one process."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one. cpu if its memory does not suffice."""
    timeout: float = 120.0
    """Seconds that the processes of a run under torchrun wait for one that does not answer. Slow steps need more."""
    threads: int | None = None
    """CPU threads. null: what torch chooses. Results have the same bits only for the same number."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    aggregator: AggregatorConfig = field(default_factory=AggregatorConfig)
    protocol: ProtocolSection = field(default_factory=ProtocolSection)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    @property
    def schedule_steps(self) -> int:
        """Length of the learning rate's cosine."""
        return self.optimizer.schedule_steps or self.steps

    @property
    def run_id(self) -> str:
        """The same seed gives the same batches until the attack starts, whatever the attack and tau."""
        return f"resnet/{self.seed}"

    @property
    def btard(self) -> bool:
        """Whether the peers run the protocol; otherwise a trusted server aggregates."""
        return self.aggregator.name == "btard"

    @property
    def can_ban(self) -> bool:
        """Whether peers can be banned."""
        return self.aggregator.name in ("btard", "emulated")

    @property
    def validators(self) -> int:
        """Validators per step: only the protocol has any."""
        return self.protocol.validators if self.btard else 0

    @property
    def radius(self) -> float | str | None:
        """The aggregator's clipping radius; None if it does not clip."""
        clips = self.aggregator.own or self.aggregator.name in CLIPPING
        server = self.aggregator.radius if clips else None
        return self.protocol.tau if self.can_ban else server

    @property
    def tolerated(self) -> int:
        """How many Byzantine peers a server's rule is made for."""
        return self.byzantine if self.aggregator.byzantine is None else self.aggregator.byzantine

    def protocol_config(self) -> ProtocolConfig:
        """Return what the peers agree on under the aggregator btard."""
        return self.protocol.config(peers=self.peers, byzantine=self.byzantine, run_id=self.run_id)

    def attackers(self) -> frozenset[int]:
        """Return which peers attack; nobody without an attack."""
        return draw_attackers(self.peers, self.byzantine, self.seed) if self.attack.name else frozenset()

    def __post_init__(self) -> None:
        for name in ("peers", "steps", "batch_size", "eval_every", "checkpoint_every"):
            require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name), "give a positive number")
        samples = self.test_samples
        require(samples is None or samples >= 1, "test_samples", ">= 1 or null", samples, "null: all test images")
        require(self.threads is None or self.threads >= 1, "threads", ">= 1 or null", self.threads, "null: automatic")
        require(0 < self.timeout < math.inf, "timeout", "> 0 and finite", self.timeout, "120 is two minutes")
        require(0 <= self.seed < 2**63, "seed", ">= 0 and < 2**63", self.seed, "any such number works")
        n, b, rule = self.peers, self.byzantine, f">= 0 and < peers / 2 = {self.peers / 2:g}"
        require(0 <= 2 * b < n, "byzantine", rule, b, "the honest must be the majority", beside="peers")
        fix = "null: as many as there are"
        require(0 <= 2 * self.tolerated < n, "aggregator.byzantine", rule, self.tolerated, fix, beside="peers")
        if self.btard:
            self.protocol.check(peers=n, byzantine=b, run_id=self.run_id)
        tau = self.protocol.tau
        clips = self.aggregator.name != "emulated" or not isinstance(tau, str)
        require(clips, "protocol.tau", "a number with the aggregator emulated", tau, "1 and 10 are the paper's")
        # Either alone would silently be a run without attack, which somebody would take for one with it.
        fix = "set attack.name, or byzantine to 0"
        require(self.attack.name is not None or b == 0, "byzantine", "0 without an attack", b, fix)
        self.attack.check(peers=n, byzantine=b, validators=self.validators, steps=self.steps)


ABOUT = """Trains as CONFIG.yaml says, with these keys changed, and writes the run to RUN_DIR. The same command goes on
with an interrupted run.

Example, a minute on 2 CPU cores:
  python -m resnet.train configs/resnet/digits.yaml --out runs/a --byzantine 7 --attack.name sign_flip"""


def load_config(argv: Sequence[str] | None = None) -> tuple[Config, Path]:
    """Return the settings and the run folder that `CONFIG.yaml --out RUN_DIR [--dotted.key value ...]` asks for.

    `argv` is by default the process's. Ends the process: with code 0 after --help, and with code 2 after one line on
    stderr if a key, a value or a file is wrong.
    """
    return settings.load_config(Config, argv, "python -m resnet.train", ABOUT)
