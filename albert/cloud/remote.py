"""Runs a command on a machine through Systems Manager, which needs no open port and no key."""

from albert.cloud.account import wait_for
from albert.cloud.errors import CloudError, unless
from albert.cloud.run import Run

WAIT_SECONDS = 60.0
OUTPUT_LIMIT = 24_000
"""Characters of a command's output that Systems Manager keeps."""

_BUSY = frozenset({"Pending", "InProgress", "Delayed"})


def run_on(run: Run, machine: str, command: str) -> str:
    """Return what a shell command prints on a machine. Raises CloudError if that fails, or there is no answer."""
    ssm = run.account.client("ssm")
    sent = unless(
        {"InvalidInstanceId"},
        ssm.send_command,
        InstanceIds=[machine],
        DocumentName="AWS-RunShellScript",
        Parameters={"commands": [command], "executionTimeout": ["30"]},
        TimeoutSeconds=30,
    )
    if sent is None:
        raise CloudError(
            f"{machine} does not answer to Systems Manager: it still boots, which takes some minutes, or it has no way "
            "to the internet; try again, and see docs/aws.md if it stays so"
        )
    command_id = sent["Command"]["CommandId"]

    def answered() -> dict[str, str] | None:
        asked = {"CommandId": command_id, "InstanceId": machine}
        found = unless({"InvocationDoesNotExist"}, ssm.get_command_invocation, **asked)  # not heard of yet
        return None if found is None or found["Status"] in _BUSY else found

    answer = wait_for(answered, WAIT_SECONDS)
    if answer is None:
        raise CloudError(f"{machine} did not answer within {WAIT_SECONDS:g} seconds; it may be overloaded, try again")
    if answer["Status"] != "Success":
        said = " ".join((answer.get("StandardErrorContent") or answer["StandardOutputContent"]).split())[-200:]
        raise CloudError(f"the command on {machine} ended with {answer['Status']}: {said or 'no message'}; try again")
    return answer["StandardOutputContent"]
