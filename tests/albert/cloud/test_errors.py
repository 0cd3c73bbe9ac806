"""One line for every error of boto3 and AWS, with what to do and without a secret."""

import boto3
import pytest
from botocore import exceptions as boto
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from albert.cloud.account import Account
from albert.cloud.errors import CloudError, explain


def answered(code: str, message: str | None, operation: str = "RunInstances") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)


LINES = [
    (boto.NoCredentialsError(), "no AWS credentials found; run `aws configure`"),
    (boto.PartialCredentialsError(provider="env", cred_var="aws_secret_access_key"), "half of the AWS credentials is"),
    (boto.ProfileNotFound(profile="lab"), "no AWS profile lab; `aws configure list-profiles` shows those there are"),
    (boto.NoRegionError(), "no AWS region; set `region` in the settings, or AWS_DEFAULT_REGION"),
    (boto.EndpointConnectionError(endpoint_url="https://ec2.us-moon-1.amazonaws.com"), "amazonaws.com cannot be"),
    (boto.ConnectTimeoutError(endpoint_url="https://x"), "https://x cannot be reached; check the network"),
    (boto.UnauthorizedSSOTokenError(), "the login has expired; run `aws sso login`"),
    (boto.ParamValidationError(report="Invalid length"), "ParamValidationError: Parameter validation failed"),
    (ResponseParserError("not XML"), "something between here and AWS answers in its place; check proxies"),
    (answered("UnauthorizedOperation", "You are not authorized. Encoded authorization failure message: abcdefgh"),
     "missing right: RunInstances was refused (UnauthorizedOperation)"),
    (answered("AccessDenied", "User: arn:aws:iam::1:user/x is not authorized to perform: iam:PassRole on resource: y"),
     "missing right: iam:PassRole was refused (AccessDenied); add it to your IAM policy"),
    (answered("InvalidClientTokenId", "The security token is invalid"), "AWS does not accept the credentials"),
    (answered("ExpiredToken", "expired"), "the credentials have expired (ExpiredToken from RunInstances); log"),
    (answered("Throttling", "Rate exceeded"), "AWS still refused RunInstances after several tries (Throttling)"),
    (answered("VcpuLimitExceeded", "You have requested more"), "the quota does not allow RunInstances"),
    (answered("InsufficientInstanceCapacity", "Not here."), "AWS has no machine to give (InsufficientInst"),
    (answered("DependencyViolation", "in use"), "(DependencyViolation: in use); something outside this run uses it"),
    (answered("Strange", None), "AWS refused RunInstances (Strange: ); docs/aws.md lists common causes"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "line"), LINES)
def test_every_error_is_one_line(error, line):
    said = str(explain(error))
    assert line in said
    assert "\n" not in said and "Encoded" not in said and len(said) < 400


def test_a_missing_region_and_profile_are_told_before_anything_is_asked(environment):
    with pytest.raises(CloudError, match="no AWS region; set `region`"):
        Account()
    with pytest.raises(CloudError, match="no AWS profile lab"):
        Account("us-east-1", "lab")


def test_wrong_credentials_are_one_line_without_them(environment, monkeypatch, endpoint):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret0123456789")
    endpoint.refuse(
        "GetCallerIdentity", "InvalidClientTokenId", "The security token included in the request is invalid."
    )
    with pytest.raises(CloudError) as refused:
        assert Account("us-east-1").caller
    assert "does not accept the credentials (InvalidClientTokenId from GetCallerIdentity)" in str(refused.value)
    assert "verysecret" not in str(refused.value)


def test_an_endpoint_that_is_not_there_is_one_line(environment, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    with pytest.raises(CloudError, match=r"http://127.0.0.1:9/ cannot be reached; check the network"):
        assert Account("us-east-1").caller


def test_boto3_itself_finds_no_credentials_of_this_machine(environment):
    assert boto3.Session().get_credentials().access_key == "testing"
