"""The disk images that machines start from: the newest of a public SSM parameter, fixed once per run."""

import difflib
from dataclasses import dataclass

from albert.cloud.account import Account
from albert.cloud.errors import CloudError, unless


@dataclass(frozen=True)
class Image:
    """An image and its first disk."""

    id: str
    name: str
    device: str
    size_gb: int


def find_image(account: Account, wanted: str, key: str, disk_gb: int) -> Image:
    """Return the image that a public SSM parameter names, or that has the id `wanted`.

    Raises CloudError, blaming the setting `key`, if there is none, or if it does not fit onto the disk.
    """
    image = describe_image(account, _resolve(account, wanted, key), key)
    if disk_gb < image.size_gb:
        raise CloudError(
            f"{key.rpartition('.')[0]}.disk_gb must be at least the image's {image.size_gb}, got {disk_gb}; increase it"
        )
    return image


def describe_image(account: Account, image_id: str, key: str) -> Image:
    """Return an image by its id. Raises CloudError if there is none."""
    unknown = ("InvalidAMIID.NotFound", "InvalidAMIID.Malformed")
    answer = unless(unknown, account.client("ec2").describe_images, ImageIds=[image_id])
    if not answer or not answer["Images"]:
        raise CloudError(f"{key}: no image {image_id} in {account.region}; images have other ids in other regions")
    image = answer["Images"][0]
    if image["Architecture"] != "x86_64":
        raise CloudError(f"{key}: the image {image_id} is for {image['Architecture']}; take one for x86_64")
    device = image.get("RootDeviceName") or "/dev/sda1"
    sizes = [m["Ebs"].get("VolumeSize", 0) for m in image["BlockDeviceMappings"] if m.get("DeviceName") == device]
    return Image(image_id, image.get("Name", image_id), device, max(sizes, default=0))


def _resolve(account: Account, wanted: str, key: str) -> str:
    if wanted.startswith("ami-"):
        return wanted
    answer = unless(("ParameterNotFound", "ValidationException"), account.client("ssm").get_parameter, Name=wanted)
    if answer is None:
        raise CloudError(f"{key}: no public parameter {wanted} in {account.region}; {_alike(account, wanted)}")
    return str(answer["Parameter"]["Value"])


LISTED = "/aws/service/deeplearning/ami/x86_64"
"""Where AWS lists the images for deep learning."""


def _alike(account: Account, wanted: str) -> str:
    """The public parameters that are named most like `wanted`, or how to list them."""
    command = f"`aws ssm get-parameters-by-path --path {LISTED} --recursive` lists those for deep learning"
    try:
        found = account.pages("ssm", "get_parameters_by_path", "Parameters", Path=LISTED, Recursive=True)
    except Exception:  # whatever it is: the missing image is what has to be said
        return command
    near = difflib.get_close_matches(wanted, [str(entry["Name"]) for entry in found], n=3, cutoff=0.3)
    return f"there are {', '.join(near)}" if near else command
