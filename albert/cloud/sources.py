"""What the machines fetch: the code at one commit, the data, the key of Weights & Biases. Checked before a launch."""

import os
import re
import shutil
import subprocess
from urllib.parse import urlparse

from albert.cloud.errors import CloudError, code_of
from albert.cloud.findings import Finding
from albert.cloud.records import has_begun, has_finished, newest_checkpoint
from albert.cloud.run import Run
from albert.cloud.security_group import read_charter

WHEEL = "wheel"
"""What a charter has instead of a commit if a wheel is installed, followed by its identity: S3's tag of its content."""

_MISSING = frozenset({"404", "NoSuchKey", "NoSuchBucket", "NotFound"})
_FORBIDDEN = frozenset({"403", "Forbidden", "AccessDenied"})


def find_commit(run: Run) -> str:
    """Return the full commit that code.ref names, or `WHEEL` and which. Raises CloudError if there is no such thing."""
    code = run.config.code
    if code.wheel is not None:
        return _find_wheel(run, code.wheel)
    if code.repository is None:
        raise CloudError(
            "neither code.repository nor code.wheel is set, so there is nothing to install; set one of them"
        )
    if re.fullmatch(r"[0-9a-f]{40}", code.ref):
        return code.ref
    if shutil.which("git") is None:
        raise CloudError(
            "git is not installed here to look up code.ref; install it, or give a full commit of 40 digits"
        )
    refs = [code.ref, f"{code.ref}^{{}}"]  # the second is the commit of an annotated tag
    environment = os.environ | {"GIT_TERMINAL_PROMPT": "0"}
    try:
        answer = subprocess.run(
            ["git", "ls-remote", "--", code.repository, *refs],
            env=environment, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError):
        fix = "check the address, and that it can be read without a password"
        raise CloudError(f"code.repository: git cannot read {code.repository}; {fix}") from None
    lines = [line.split("\t") for line in answer.stdout.splitlines()]
    found = {name: commit for commit, name in lines}
    for prefix in ("refs/tags/", "refs/heads/"):
        for suffix in ("^{}", ""):
            if prefix + code.ref + suffix in found:
                return found[prefix + code.ref + suffix]
    raise CloudError(
        f"code.ref: {code.repository} has no tag or branch {code.ref}; push it, or give a full commit of 40 digits"
    )


def _find_wheel(run: Run, address: str) -> str:
    place = urlparse(address)
    s3 = run.account.client("s3")
    try:
        tag = s3.head_object(Bucket=place.netloc, Key=place.path.lstrip("/"))["ETag"].strip('"')
    except s3.exceptions.ClientError:
        return WHEEL  # what is wrong is said by `check_sources`
    return f"{WHEEL} {tag}"


def check_sources(run: Run) -> list[Finding]:
    """Return whether what the machines fetch is there. Nothing is downloaded."""
    config = run.config
    findings = []
    if config.code.wheel is not None:
        findings.append(_check_object(run, "code", "code.wheel", config.code.wheel))
    source = config.data.source
    if source is None:
        findings.append(
            Finding("stop", "data", "data.source is null: peers would have no data", "set it to s3:// or https://")
        )
    elif source.startswith("s3://"):
        check = _check_object if config.data.is_archive else _check_folder
        findings.append(check(run, "data", "data.source", source))
    else:
        advice = "" if config.data.sha256 else "set data.sha256, so that every peer has the same"
        findings.append(Finding("ok" if not advice else "note", "data", source, advice))
    findings += _check_results(run)
    findings.append(_check_wandb(run))
    return findings


def _check_object(run: Run, topic: str, key: str, address: str) -> Finding:
    place = urlparse(address)
    s3 = run.account.client("s3")
    try:
        s3.head_object(Bucket=place.netloc, Key=place.path.lstrip("/"))
    except s3.exceptions.ClientError as error:
        return unreadable(topic, key, address, error)
    return Finding("ok", topic, address)


def _check_folder(run: Run, topic: str, key: str, address: str) -> Finding:
    place = urlparse(address.rstrip("/") + "/")
    s3 = run.account.client("s3")
    try:
        listed = s3.list_objects_v2(Bucket=place.netloc, Prefix=place.path.lstrip("/"), MaxKeys=1)
    except s3.exceptions.ClientError as error:
        return unreadable(topic, key, address, error)
    if not listed.get("KeyCount"):
        return Finding("stop", topic, f"{address} is empty", f"upload the data with `aws s3 sync`, or change {key}")
    return Finding("ok", topic, address)


def unreadable(topic: str, key: str, address: str, error: Exception) -> Finding:
    """Return the finding that setting `key` names something in S3 that cannot be read; any other error is raised."""
    code = code_of(error)
    if code in _MISSING:
        return Finding("stop", topic, f"{address} is not there", f"upload it, or change {key}")
    if code in _FORBIDDEN:
        return Finding(
            "stop", topic, f"{address} may not be read", f"allow s3:GetObject and s3:ListBucket, or change {key}"
        )
    raise error


def _check_results(run: Run) -> list[Finding]:
    if run.folder is None:
        advice = "set bucket, unless only Weights & Biases matters"
        return [Finding("note", "results", "bucket is null: the run folder is lost when the coordinator ends", advice)]
    bucket, config = run.config.bucket, run.config
    s3 = run.account.client("s3")
    try:
        listed = s3.list_objects_v2(Bucket=bucket, Prefix=f"{config.prefix}/{config.run_id}/", MaxKeys=1)
    except s3.exceptions.ClientError as error:
        return [unreadable("results", "bucket", f"s3://{bucket}", error)]
    if has_finished(run):
        advice = "`fetch` it, or choose another run_id or prefix for a run from the start"
        return [Finding("stop", "results", f"{run.folder} has a run that has finished", advice)]
    if has_begun(run) and read_charter(run) is None:
        start = newest_checkpoint(run)
        advice = f"choose another run_id, with swarm.start_from {start}" if start else "choose another run_id or prefix"
        return [Finding("stop", "results", f"{run.folder} has a run whose peers are gone with their machines", advice)]
    if listed.get("KeyCount"):
        advice = "choose another run_id or prefix for a run from the start"
        return [Finding("note", "results", f"{run.folder} has a run, which will go on", advice)]
    return [Finding("ok", "results", str(run.folder))]


def _check_wandb(run: Run) -> Finding:
    name = run.config.wandb.parameter
    if name is None:
        return Finding("ok", "wandb", "no reporting (wandb.parameter is null)")
    filters = [{"Key": "Name", "Option": "Equals", "Values": [name]}]
    found = run.account.pages("ssm", "describe_parameters", "Parameters", ParameterFilters=filters)
    if not found:
        advice = f"`aws ssm put-parameter --region {run.account.region} --type SecureString --name {name} --value KEY`"
        return Finding("stop", "wandb", f"no parameter {name}", advice)
    if found[0]["Type"] != "SecureString":
        return Finding("stop", "wandb", f"{name} is a {found[0]['Type']}, readable in plain", "make it a SecureString")
    return Finding("ok", "wandb", f"{name}, project {run.config.wandb.project}")
