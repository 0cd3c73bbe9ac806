"""The launch templates: what each role's machines start from, how they end, and what they are told."""

import base64
from typing import Any

from albert.cloud.config import words
from albert.cloud.images import Image
from albert.cloud.names import Role, kind_of
from albert.cloud.run import Run


def template_data(run: Run, role: Role, image: Image, group_id: str, script: str) -> dict[str, Any]:
    """Return what is in a role's template. A machine that shuts down is terminated, with its disk."""
    config, names = run.config, run.names
    coordinator = role == "coordinator"
    size = config.coordinator.disk_gb if coordinator else config.trainers.disk_gb
    disk = {"VolumeSize": size, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    data = {
        "ImageId": image.id,
        "InstanceType": config.coordinator.type if coordinator else words(config.trainers.types)[0],
        "IamInstanceProfile": {"Name": names.iam(kind_of(role))},
        "InstanceInitiatedShutdownBehavior": "terminate",
        "SecurityGroupIds": [group_id],
        "BlockDeviceMappings": [{"DeviceName": image.device, "Ebs": disk}],
        "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled"},
        "TagSpecifications": [{"ResourceType": kind, "Tags": names.tags(role)} for kind in ("instance", "volume")],
        "UserData": base64.b64encode(script.encode()).decode(),
    }
    return data | ({"KeyName": config.network.ssh_key} if config.network.ssh_key else {})


def make_template(run: Run, role: Role, data: dict[str, Any]) -> None:
    """Create a role's template, which must not exist yet."""
    run.account.client("ec2").create_launch_template(
        LaunchTemplateName=run.names.of(role),
        LaunchTemplateData=data,
        TagSpecifications=[{"ResourceType": "launch-template", "Tags": run.names.tags(role)}],
    )


def find_templates(run: Run) -> list[dict[str, Any]]:
    """Return the run's templates as EC2 describes them."""
    return run.account.pages("ec2", "describe_launch_templates", "LaunchTemplates", Filters=run.names.filters)


def remove_templates(run: Run) -> list[str]:
    """Remove the run's templates; return what was removed."""
    removed = []
    for template in find_templates(run):
        run.account.client("ec2").delete_launch_template(LaunchTemplateId=template["LaunchTemplateId"])
        removed.append(f"launch template {template['LaunchTemplateName']}")
    return removed
