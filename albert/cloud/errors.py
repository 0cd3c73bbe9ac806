"""One line for the user from what AWS or boto3 says: what was expected, what came, what to do."""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from btard.boundary import MachineError

T = TypeVar("T")

CREDENTIALS = "run `aws configure`, or set AWS_PROFILE, or `profile` in the settings"

DENIED = frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "AuthorizationError"})
"""Error codes that mean: these credentials are known, and lack a right."""

BAD_CREDENTIALS = frozenset(
    {
        "AuthFailure",
        "InvalidClientTokenId",
        "UnrecognizedClientException",
        "SignatureDoesNotMatch",
        "InvalidAccessKeyId",
    }
)
EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
THROTTLED = frozenset(
    {"RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequestsException", "SlowDown"}
)
CAPACITY = frozenset({"InsufficientInstanceCapacity", "Unsupported", "UnfulfillableCapacity"})
"""Error codes that mean: not in this zone, now."""
QUOTA = frozenset({"VcpuLimitExceeded", "InstanceLimitExceeded", "MaxSpotInstanceCountExceeded"})

ADVICE = {
    "DependencyViolation": "something outside this run uses it: remove that, then `stop` again",
    "IdempotentParameterMismatch": "wait some minutes and launch again",
    "LimitExceeded": "AWS limits how many of these an account may have: remove unused ones in the console",
    "OptInRequired": "this account is not yet active for the service: open the AWS console and finish signing up",
    "PendingVerification": "AWS still checks this account for the region; it sends an e-mail when it has",
}


class CloudError(MachineError, RuntimeError):
    """One line for the user: what was expected, what came, what to do."""


KNOWN = (CloudError, boto.ClientError, boto.BotoCoreError, ResponseParserError)
"""Errors that are not our own bugs, but come from AWS or the network."""


def code_of(error: BaseException) -> str:
    """Return AWS's code of an error, "" for any other error."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


def passes(error: BaseException) -> bool:
    """Whether an error of `KNOWN` comes from the network or from a busy service, so that a later try may go well."""
    if isinstance(error, boto.ClientError):
        return code_of(error) in THROTTLED or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500
    if isinstance(error, boto.SSLError | boto.ProxyConnectionError):
        return False
    broken = boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError | ResponseParserError
    return isinstance(error, broken)


def explain(error: Exception) -> CloudError:
    """Return the line for one of `KNOWN`. It never repeats credentials, which boto3's own messages do not hold."""
    if isinstance(error, CloudError):
        return error
    if isinstance(error, boto.ClientError):
        return CloudError(_of_answer(error))
    if isinstance(error, ResponseParserError):
        return CloudError("something between here and AWS answers in its place; check proxies and AWS_ENDPOINT_URL")
    return CloudError(_of_boto(error))


def unless(codes: Collection[str], call: Callable[..., T], **arguments: Any) -> T | None:
    """Return what `call` returns; None if AWS refuses it with one of these error codes. Other errors are raised."""
    try:
        return call(**arguments)
    except boto.ClientError as error:
        if code_of(error) not in codes:
            raise
        return None


@contextmanager
def explained() -> Iterator[None]:
    """Within it, errors of boto3 become CloudError."""
    try:
        yield
    except KNOWN as error:
        raise explain(error) from None


def _of_answer(error: boto.ClientError) -> str:
    code = code_of(error)
    operation = error.operation_name
    details = error.response.get("Error", {})
    said = _short(details.get("Message", ""))
    if code in DENIED:
        action = _denied_action(said) or operation
        return f"missing right: {action} was refused ({code}); add it to your IAM policy, docs/aws.md has all of them"
    if code in BAD_CREDENTIALS:
        return f"AWS does not accept the credentials ({code} from {operation}); {CREDENTIALS}"
    if code in EXPIRED:
        return f"the credentials have expired ({code} from {operation}); log in again, for example `aws sso login`"
    if code in THROTTLED:
        return f"AWS still refused {operation} after several tries ({code}); wait a minute, then run the same command"
    if code in QUOTA:
        return f"the quota does not allow {operation} ({code}: {said}); `plan` says which one, and how to raise it"
    if code in CAPACITY:
        return f"AWS has no machine to give ({code}: {said}); allow other types or zones, or try later"
    advice = ADVICE.get(code, "docs/aws.md lists common causes")
    return f"AWS refused {operation} ({code}: {said}); {advice}"


def _of_boto(error: Exception) -> str:
    values: dict[str, Any] = getattr(error, "kwargs", {})
    if isinstance(error, boto.NoCredentialsError):
        return f"no AWS credentials found; {CREDENTIALS}"
    if isinstance(error, boto.PartialCredentialsError):
        return f"half of the AWS credentials is missing ({values.get('cred_var')}); {CREDENTIALS}"
    if isinstance(error, boto.ProfileNotFound):
        return f"no AWS profile {values.get('profile')}; `aws configure list-profiles` shows those there are"
    if isinstance(error, boto.NoRegionError):
        return "no AWS region; set `region` in the settings, or AWS_DEFAULT_REGION"
    if isinstance(error, boto.TokenRetrievalError | boto.UnauthorizedSSOTokenError | boto.SSOTokenLoadError):
        return "the login has expired; run `aws sso login`"
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        where = values.get("endpoint_url", "AWS")
        return f"{where} cannot be reached; check the network, and that the region's name is right"
    return f"{type(error).__name__}: {_short(str(error))}"


def _denied_action(said: str) -> str | None:
    match = re.search(r"(?:not authorized to perform:?\s+)([a-z0-9-]+:\w+)", said)
    return match[1] if match else None


def _short(text: str | None) -> str:
    # EC2 appends an encoded explanation of a thousand characters to what it denies.
    text = " ".join((text or "").partition("Encoded authorization failure message")[0].split()).rstrip(".")
    return text if len(text) <= 240 else text[:237] + "..."
