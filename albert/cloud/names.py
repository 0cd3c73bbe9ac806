"""The names and tags of everything of a run: the same for every launch, so that it is found again."""

from dataclasses import dataclass
from typing import Literal

Role = Literal["coordinator", "honest", "byzantine"]
Kind = Literal["coordinator", "trainer"]

RUN_TAG = "btard:run"
ROLE_TAG = "btard:role"

ROLES: tuple[Role, ...] = ("coordinator", "honest", "byzantine")
KINDS: tuple[Kind, ...] = ("coordinator", "trainer")


def kind_of(role: Role) -> Kind:
    """Return which rights and which programs the machines of a role have."""
    return "coordinator" if role == "coordinator" else "trainer"


@dataclass(frozen=True)
class Names:
    """The names of one run in one region."""

    run_id: str
    region: str

    @property
    def base(self) -> str:
        """Name of the security group, and prefix of other names."""
        return f"btard-{self.run_id}"

    def of(self, role: Role) -> str:
        """Name of a role's launch template, Auto Scaling group and machines."""
        return f"{self.base}-{role}"

    def iam(self, kind: Kind) -> str:
        """Name of a kind's IAM role and instance profile. IAM knows no regions, so the name contains the region."""
        return f"{self.base}-{self.region}-{kind}"

    @property
    def iam_path(self) -> str:
        """The path under which IAM keeps them, and by which they are found."""
        return f"/btard/{self.run_id}/{self.region}/"

    @property
    def parameters(self) -> str:
        """The path of the run's parameters."""
        return f"/btard/{self.run_id}"

    @property
    def address(self) -> str:
        """The parameter with the coordinator's address, which the coordinator writes and the trainers wait for."""
        return f"{self.parameters}/coordinator"

    def end_action(self, role: Role) -> str:
        """Name of the scheduled action that empties a role's Auto Scaling group."""
        return f"{self.of(role)}-end"

    def tags(self, role: Role | None = None) -> list[dict[str, str]]:
        """The tags of everything of the run, in the form that EC2 and IAM take."""
        tags = {RUN_TAG: self.run_id, "Name": self.of(role) if role else self.base}
        if role:
            tags[ROLE_TAG] = role
        return [{"Key": key, "Value": value} for key, value in tags.items()]

    @property
    def filters(self) -> list[dict[str, object]]:
        """The filter by which EC2 finds everything of the run."""
        return [{"Name": f"tag:{RUN_TAG}", "Values": [self.run_id]}]


def tag_map(tags: list[dict[str, str]] | None) -> dict[str, str]:
    """Return tags as AWS lists them as a mapping."""
    return {tag["Key"]: tag["Value"] for tag in tags or []}
