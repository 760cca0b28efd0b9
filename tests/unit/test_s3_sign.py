"""Signatures of S3 requests are those that AWS's own library makes."""

from __future__ import annotations

import time

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as AwsKeys

from xnatfs.archives.objects.s3_sign import encoded_query, signed_headers
from xnatfs.config import Credentials

TARGETS = [
    "/bucket/key",
    "/bucket/sub-01/a%20b%2Bc/%C3%BC~_.-.nii",
    "/bucket//twice//",
    f"/bucket?{encoded_query({'list-type': '2', 'prefix': 'a b+ü/~', 'continuation-token': '1/x=='})}",
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("token", [None, "session-token"])
@pytest.mark.parametrize("host", ["s3.eu-west-1.amazonaws.com", "127.0.0.1:9000"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_signature_is_the_one_that_botocore_makes(method: str, host: str, token: str | None, target: str) -> None:
    ours = signed_headers(
        method, host, target, "eu-west-1", Credentials("AKIAEXAMPLE", "secret/key", "", session_token=token)
    )
    assert ours
    request = AWSRequest(method, f"http://{host}{target}", headers={"X-Amz-Date": ours["x-amz-date"]})
    request.context["timestamp"] = ours["x-amz-date"]
    signer = S3SigV4Auth(AwsKeys("AKIAEXAMPLE", "secret/key", token), "s3", "eu-west-1")
    signer._modify_request_before_signing(request)
    signature = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    assert ours["Authorization"].endswith(f"Signature={signature}")
    assert f"Credential=AKIAEXAMPLE/{time.strftime('%Y%m%d', time.gmtime())}/eu-west-1/s3/" in ours["Authorization"]


def test_a_guest_signs_nothing() -> None:
    assert signed_headers("GET", "host", "/b/k", "us-east-1", Credentials()) == {}
