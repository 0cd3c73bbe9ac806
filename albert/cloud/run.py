"""One run: its account, its settings, its names, and what its first launch fixed for good."""

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from albert.cloud.account import Account
from albert.cloud.config import Config, fixed_text
from albert.cloud.errors import CloudError
from albert.cloud.names import KINDS, Kind, Names, Role

LAST_CALL = timedelta(minutes=5)
"""How long before its end a run is no longer worth repairing."""


@dataclass(frozen=True)
class Run:
    """What every command works on."""

    account: Account
    config: Config

    @property
    def names(self) -> Names:
        """The names of everything of the run."""
        return Names(self.config.run_id, self.account.region)

    @property
    def sizes(self) -> dict[Role, int]:
        """How many machines each role has; a role without any is left out."""
        trainers = self.config.trainers
        wanted: dict[Role, int] = {"coordinator": 1, "honest": trainers.count - trainers.byzantine}
        return wanted | ({"byzantine": trainers.byzantine} if trainers.byzantine else {})

    @property
    def groups(self) -> dict[Role, int]:
        """The same for the roles that have an Auto Scaling group: those of trainers."""
        return {role: size for role, size in self.sizes.items() if role != "coordinator"}

    @property
    def folder(self) -> str | None:
        """The coordinator's run folder in S3, None without a bucket."""
        config = self.config
        return f"s3://{config.bucket}/{config.prefix}/{config.run_id}" if config.bucket else None


@dataclass(frozen=True)
class Charter:
    """What the first launch of a run decides, and every later one keeps. It is stored in tags of the security group."""

    started: datetime
    ends: datetime
    settings: str
    """A digest of the settings that may not change."""
    commit: str
    """Commit of the code; "wheel" and S3's tag of its content if a wheel is installed."""
    images: dict[Kind, str]
    complete: bool = False
    """Whether a launch reached its end."""

    def tags(self) -> dict[str, str]:
        """The charter as tags."""
        tags = {
            "btard:started": _text(self.started),
            "btard:ends": _text(self.ends),
            "btard:settings": self.settings,
            "btard:commit": self.commit,
            "btard:state": "complete" if self.complete else "launching",
        }
        return tags | {f"btard:image-{kind}": image for kind, image in self.images.items()}

    @staticmethod
    def of_tags(tags: dict[str, str]) -> "Charter":
        """The charter stored in tags. Raises CloudError if tags are missing."""
        try:
            return Charter(
                started=_time(tags["btard:started"]),
                ends=_time(tags["btard:ends"]),
                settings=tags["btard:settings"],
                commit=tags["btard:commit"],
                images={kind: tags[f"btard:image-{kind}"] for kind in KINDS},
                complete=tags["btard:state"] == "complete",
            )
        except (KeyError, ValueError) as error:
            raise CloudError(f"the security group of this run lacks the tag {error}; `stop` the run") from None

    def completed(self) -> "Charter":
        """The same charter for a run that is complete."""
        return replace(self, complete=True)

    def check(self, run: Run, swarm_settings: str, commit: str, now: datetime) -> None:
        """Raise CloudError unless a launch with these settings may continue this run.

        `commit` is what would be installed now: machines to come fetch the same wheel as those that are there.
        """
        name = run.config.run_id
        if now >= self.ends - LAST_CALL:
            raise CloudError(
                f"run {name} ends at {shown(self.ends)} as max_hours says; `stop` removes what is left of it, "
                "then launch it again, or launch another run_id"
            )
        if self.settings != settings_digest(run, swarm_settings):
            raise CloudError(
                f"run {name} was launched with other settings on {shown(self.started)}; launch it with those, "
                "`stop` it first, or choose another run_id"
            )
        if run.config.code.wheel is not None and commit != self.commit:
            raise CloudError(
                f"code.wheel: {run.config.code.wheel} is another one than when run {name} was launched ({commit}, then "
                f"{self.commit}), and all machines must have the same; upload that one again, or `stop` the run first"
            )


def settings_digest(run: Run, swarm_settings: str) -> str:
    """Return a digest of all that a second launch may not change."""
    return hashlib.sha256((fixed_text(run.config) + "\0" + swarm_settings).encode()).hexdigest()[:16]


def now() -> datetime:
    """Return the time in UTC, to the second."""
    return datetime.now(timezone.utc).replace(microsecond=0)


def shown(time: datetime) -> str:
    """Return a time as the user reads it."""
    return time.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _text(time: datetime) -> str:
    return time.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
