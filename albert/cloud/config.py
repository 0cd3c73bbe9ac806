"""The settings of a swarm on AWS. The defaults are the paper's swarm, and configs/albert/aws.yaml."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any, ClassVar

import yaml

from btard.checks import FieldError, require
from btard.harness.settings import default_of
from btard.harness.typed_yaml import build, keys, read_settings, read_words

Option = int | float | bool | str | None
OPTIONS = "swarm.options"


def words(text: str) -> tuple[str, ...]:
    """Return the words of a setting that holds several, separated by spaces or commas."""
    return tuple(text.replace(",", " ").split())


@dataclass(frozen=True, kw_only=True)
class CodeConfig:
    """What is installed on the machines: the repository at one commit, or a wheel."""

    repository: str | None = None
    """Address that `git clone` can read without a password, such as https://github.com/OWNER/btard.git."""
    ref: str = "main"
    """Commit, tag or branch of it. A branch is resolved once, by the first launch: machines that replace interrupted
    ones days later run the same commit."""
    wheel: str | None = None
    """For code that is not public, instead of the repository: s3://BUCKET/PATH.whl, made by `pip wheel . --no-deps`.
    It is installed with its extra `experiments`, which is requirements.txt."""
    requirements: str | None = "requirements.txt"
    """With the repository: the file in it that pip installs. null: none."""
    packages: str = ""
    """What else pip installs, separated by spaces, such as "hivemind==1.1.12"."""
    python: str = "python3"
    """The interpreter of the image that creates the virtual environment."""

    def __post_init__(self) -> None:
        both = self.repository is not None and self.wheel is not None
        require(not both, "wheel", "null if code.repository is set", self.wheel, "the machines install one of them")
        if self.wheel is not None:
            good = re.fullmatch(r"s3://[^/\s]+/\S+\.whl", self.wheel) is not None
            require(good, "wheel", "s3://BUCKET/PATH.whl", self.wheel, "upload it with `aws s3 cp`")
        if self.repository is not None:
            secret = "@" in self.repository.partition("://")[2].partition("/")[0]
            shown = self.repository if not secret else "one with a user in it"
            fix = "for code that is not public, upload a wheel and set code.wheel"
            public = self.repository.startswith("https://") and not secret
            require(public, "repository", "a public https:// address", shown, fix)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The prepared training data, which every machine fetches before it starts."""

    source: str | None = None
    """s3://BUCKET/FOLDER, or an archive (.tar, .tar.gz, .tgz, .tar.zst) at s3:// or https://. null: nothing is fetched,
    and the swarm's own settings say where its data come from."""
    sha256: str | None = None
    """For an archive: a machine that fetches anything else does not start. Set it with https://. null: not checked."""

    def __post_init__(self) -> None:
        if self.source is None:
            return
        known = self.source.startswith(("s3://", "https://"))
        require(known, "source", "s3:// or https://", self.source, "upload a folder with `aws s3 sync`")
        folder = self.source.startswith("s3://") or self.is_archive
        require(folder, "source", "an archive if it is https://", self.source, "pack the folder with `tar -czf`")
        checkable = self.sha256 is None or self.is_archive
        require(checkable, "sha256", "null if data.source is a folder", self.sha256, "only archives are checked")

    @property
    def is_archive(self) -> bool:
        """Whether the source is one file to unpack."""
        return self.source is not None and self.source.endswith((".tar", ".tar.gz", ".tgz", ".tar.zst"))


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """What the Byzantine trainers do, and when."""

    name: str | None = "sign_flip"
    """An attack of btard.attacks. null: what the swarm's own settings say."""
    start: int | None = 1000
    """First step of the attack. null: what the swarm's own settings say. Its other options are swarm.options."""


@dataclass(frozen=True, kw_only=True)
class SwarmConfig:
    """What the machines run."""

    config: str = "configs/albert/paper.yaml"
    """The swarm's own settings: a local file, which is sent to every machine in its state at the first launch."""
    port: int = 31337
    """TCP port on which peers talk to each other."""
    start_from: str | None = None
    """s3://BUCKET/PATH.safetensors: a checkpoint that a coordinator has kept. Every machine fetches it, and the run
    starts from it. null: new parameters."""
    public: bool = False
    """true: peers announce public addresses, and the port is open to everybody, so that peers outside AWS can join;
    traffic over public addresses is charged. false: private addresses, and the port is open inside the swarm only."""
    options: dict[str, Option] = field(default_factory=dict)
    """Any key of the swarm's own settings, to change it on all machines: --swarm.options.optimizer.lr 0.001. The number
    of peers, the attack, addresses and the like are passed on without this."""

    def __post_init__(self) -> None:
        require(1024 <= self.port <= 65535, "port", "from 1024 to 65535", self.port, "31337 is the default")
        if self.start_from is not None:
            good = re.fullmatch(r"s3://[^/\s]+/\S+\.safetensors", self.start_from) is not None
            fix = "runs keep theirs in s3://BUCKET/PREFIX/RUN_ID/checkpoints"
            require(good, "start_from", "s3://BUCKET/PATH.safetensors", self.start_from, fix)
            both = "start_from" in self.options
            fix = "take start_from out of the options: machines fetch only the other"
            require(not both, "start_from", "null if swarm.options.start_from is given", self.start_from, fix)


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases, to which the coordinator reports."""

    parameter: str | None = None
    """Name of the SecureString in SSM Parameter Store that holds the key, such as /btard/wandb. Only the coordinator
    may read it, when it starts; the key itself is never in a setting. null: no reporting."""
    project: str = "btard-albert"
    """The project there."""

    def __post_init__(self) -> None:
        good = self.parameter is None or re.fullmatch(r"/[\w.\-/]+", self.parameter) is not None
        fix = "put the key there with `aws ssm put-parameter --type SecureString`"
        # What came is not shown: somebody may have written the key itself here.
        require(good, "parameter", "a parameter's name that begins with /", "something else", fix)


@dataclass(frozen=True, kw_only=True)
class CoordinatorConfig:
    """The one machine through which peers join. It monitors and checkpoints, needs no GPU, and is not spot."""

    type: str = "m6i.large"
    """Instance type, of x86-64. Take one with more memory if its process is killed at checkpoints."""
    image: str = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    """Public SSM parameter that names the newest image (Ubuntu or Debian), or an image id (ami-...)."""
    disk_gb: int = 50
    """Size of its disk. Increase it if checkpoints of a long run do not fit."""
    price: float | None = None
    """Dollars per hour. null: AWS's price list is asked."""


@dataclass(frozen=True, kw_only=True)
class TrainersConfig:
    """The machines with one GPU and one peer each."""

    count: int = 16
    """Number of trainers, including the Byzantine ones."""
    byzantine: int = 7
    """Number of Byzantine trainers. They form a separate Auto Scaling group, so that a replacement is one, too."""
    types: str = "g4dn.xlarge g4dn.2xlarge"
    """Acceptable instance types, x86-64. More types are interrupted less often and found more easily; the most
    expensive one bounds the costs."""
    spot: bool = True
    """true: spot instances, which AWS interrupts and replaces. false: on-demand at about three times the price. Turn it
    off if peers are interrupted more often than they train."""
    max_price: float | None = None
    """Dollars per hour above which no spot instance is taken. null: the on-demand price."""
    rebalance: bool = False
    """true: AWS starts the replacement as soon as an interruption becomes likely. The swarm then has one more peer for
    some minutes."""
    image: str = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
    """Public SSM parameter that names the newest image (with NVIDIA's driver, Ubuntu or Debian), or an image id."""
    disk_gb: int = 120
    """Size of each disk. It must hold the image (75 GB), PyTorch (10 GB) and the data."""

    def __post_init__(self) -> None:
        require(self.count >= 1, "count", ">= 1", self.count, "the paper has 16")
        good = self.byzantine >= 0 and 2 * self.byzantine < self.count
        rule = f">= 0 and < count / 2 = {self.count / 2:g}"
        require(good, "byzantine", rule, self.byzantine, "no protocol withstands a half of liars")
        require(
            bool(words(self.types)), "types", "at least one instance type", repr(self.types), "g4dn.xlarge has a T4"
        )
        price = self.max_price
        require(price is None or price > 0, "max_price", "> 0 or null", price, "null is the on-demand price")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Where the machines run, and who may log in."""

    vpc: str | None = None
    """The network (vpc-...). null: the default one."""
    subnets: str | None = None
    """Its subnets to use (subnet-... subnet-...), separated by spaces. null: all in zones with the wanted types."""
    zones: str | None = None
    """Availability zones to stay within. null: all. Traffic between zones costs 0.01 dollars per GB and direction; with
    fewer zones, peers are interrupted more often."""
    ssh_key: str | None = None
    """Name of a key pair in EC2. null: no SSH at all; `logs` and Session Manager work without."""
    ssh_from: str | None = None
    """Who may use SSH, such as 203.0.113.7/32. null: only the address that you launch from. Launch again when it has
    changed."""
    address_service: str = "https://checkip.amazonaws.com"
    """The service that tells your address."""

    def __post_init__(self) -> None:
        try:
            network = ip_network(self.ssh_from) if self.ssh_from is not None else None
        except ValueError:
            rule = "an address range such as 203.0.113.7/32"
            raise FieldError("ssh_from", f"must be {rule}, got {self.ssh_from}; null is your own address") from None
        narrow = network is None or network.prefixlen > 0
        require(narrow, "ssh_from", "narrower than everybody", self.ssh_from, "null is your own address")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One swarm."""

    free_to_change: ClassVar[frozenset[str]] = frozenset(
        {
            "profile",
            "wait_minutes",
            "log_lines",
            "ignore_quota",
            "ignore_rights",
            "hours",
            "network.ssh_from",
            "network.address_service",
        }
    )
    """What a second launch of a run may have changed."""
    elsewhere: ClassVar[dict[str, str]] = {
        "baseline": "a series of swarms: python -m albert.experiments {file} --out DIR",
        "experiments": "a grid of runs: python -m resnet.sweep {file} --out DIR",
        "deadlines": "the configuration of a swarm: python -m albert.swarm {file} --out RUN_DIR",
        "peers": "the configuration of a swarm: python -m albert.swarm {file} --out RUN_DIR",
        "aggregator": "the configuration of a ResNet run: python -m resnet.train {file} --out RUN_DIR",
    }

    run_id: str = "albert"
    """Names and tags everything of this run. Choose another one for another swarm at the same time."""
    region: str | None = None
    """AWS region, such as us-east-1. null: the one of the AWS profile."""
    profile: str | None = None
    """Profile in ~/.aws to take credentials from. null: the usual order of the AWS tools."""
    hours: float = 25.0
    """How long the run is expected to take; `plan` says what that costs. Changes nothing else."""
    max_hours: float = 36.0
    """Hours after the first launch at which everything ends by itself, finished or not."""
    bucket: str | None = None
    """S3 bucket, in the same region, to which the coordinator's run folder is copied every minute. null: it is lost
    when the machine ends. A coordinator that replaces a lost one continues from there."""
    prefix: str = "btard"
    """Folder in the bucket: runs go to s3://BUCKET/PREFIX/RUN_ID/."""
    keep_finished: bool = False
    """true: machines whose process has finished stay until max_hours for inspection. false: a finished trainer leaves,
    and a finished coordinator ends the run."""
    ignore_quota: bool = False
    """true: launch although the quota is too small, and accept fewer peers."""
    ignore_rights: bool = False
    """true: launch although AWS's simulation says that you lack rights. It does not know all conditions of policies."""
    wait_minutes: float = 10.0
    """How long `launch` watches the machines start before it leaves that to AWS. 0: not at all."""
    log_lines: int = 200
    """How many lines `logs` shows."""
    code: CodeConfig = field(default_factory=CodeConfig)
    data: DataConfig = field(default_factory=DataConfig)
    swarm: SwarmConfig = field(default_factory=SwarmConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    coordinator: CoordinatorConfig = field(default_factory=CoordinatorConfig)
    trainers: TrainersConfig = field(default_factory=TrainersConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        named = re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?", self.run_id) is not None
        fix = "AWS allows little more in all the places it is used"
        require(named, "run_id", "1 to 24 of a-z, 0-9 and - inside", repr(self.run_id), fix)
        require(self.hours > 0, "hours", "> 0", self.hours, "25 is for 1,250 steps")
        rule = f">= hours = {self.hours:g} and at most 168"
        good = self.hours <= self.max_hours <= 168
        fix = "nothing may run on unwatched for more than a week"
        require(good, "max_hours", rule, f"{self.max_hours:g}", fix, beside="hours")
        neat = re.fullmatch(r"[\w.-]+(/[\w.-]+)*", self.prefix) is not None
        require(neat, "prefix", "a folder such as btard or results/btard", repr(self.prefix), "no / at the ends")
        plain = self.bucket is None or re.fullmatch(r"[a-z0-9.-]{3,63}", self.bucket) is not None
        rule = "the name of a bucket: 3 to 63 lower-case letters, digits, dots and hyphens"
        require(plain, "bucket", rule, self.bucket, "leave out s3:// and folders")
        require(self.wait_minutes >= 0, "wait_minutes", ">= 0", self.wait_minutes, "0 does not wait")
        require(1 <= self.log_lines <= 10_000, "log_lines", "from 1 to 10000", self.log_lines, "200 is the default")


def load(path: Path, changes: Sequence[str]) -> Config:
    """Return the settings in a YAML file with `--dotted.key value` words over them. Raises ConfigError."""
    return build(Config, read_settings(path, Config) | read_words(changes, Config), str(path))


def fixed_text(config: Config) -> str:
    """Return all settings that a second launch of the same run may not change, as YAML; the same text for the same."""
    content: dict[str, Any] = asdict(config)
    for key in config.free_to_change:
        *sections, name = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        del place[name]
    return yaml.safe_dump(content, sort_keys=True)


def help_text() -> str:
    """Return every key with its default and what it does."""
    found = keys(Config).items()
    return "\n\n".join(f"  --{key} {default_of(Config, key)}\n      {doc}" for key, (_, doc) in found)
