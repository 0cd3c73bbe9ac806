"""Properties of the instance types: processors, memory, GPU, and whether the images run on them."""

from dataclasses import dataclass

from albert.cloud.account import Account
from albert.cloud.config import words
from albert.cloud.errors import CloudError, unless
from albert.cloud.run import Run


@dataclass(frozen=True)
class MachineType:
    """One instance type."""

    name: str
    vcpus: int
    memory_gb: float
    gpu: str
    """Such as "1 x T4", "" without a GPU."""

    @property
    def family(self) -> str:
        """The letters by which AWS counts quotas, such as g, vt, m."""
        return family(self.name)


def family(name: str) -> str:
    """Return the leading letters of an instance type's name: g of g4dn.xlarge, vt of vt1.3xlarge."""
    return name[: next((i for i, letter in enumerate(name) if letter.isdigit()), len(name))]


def read_types(run: Run) -> dict[str, MachineType]:
    """Return all types that the settings name. Raises CloudError for one that AWS does not have or that is not x86."""
    trainers = words(run.config.trainers.types)
    found = {name: _read(run.account, name, "trainers.types") for name in trainers}
    name = run.config.coordinator.type
    return found | {name: _read(run.account, name, "coordinator.type")}


def _read(account: Account, name: str, key: str) -> MachineType:
    unknown = ("InvalidInstanceType", "InvalidParameterValue")
    answers = unless(unknown, account.client("ec2").describe_instance_types, InstanceTypes=[name])
    if not answers or not answers["InstanceTypes"]:
        raise CloudError(f"{key}: AWS has no instance type {name} in {account.region}; change it, or the region")
    answer = answers["InstanceTypes"][0]
    if "x86_64" not in answer["ProcessorInfo"]["SupportedArchitectures"]:
        raise CloudError(f"{key}: {name} is no x86-64 machine, and the images are; take another type")
    gpus = answer.get("GpuInfo", {}).get("Gpus", [])
    if key == "trainers.types" and not gpus:
        raise CloudError(f"{key}: {name} has no GPU; g4dn.xlarge has a T4")
    return MachineType(
        name,
        answer["VCpuInfo"]["DefaultVCpus"],
        answer["MemoryInfo"]["SizeInMiB"] / 1024,
        ", ".join(f"{gpu['Count']} x {gpu['Name']}" for gpu in gpus),
    )
