"""moto's S3 server in a process of its own: an S3 that others wrote, with keys and signatures that it checks."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.helpers.relays import free_port

START_S = 40.0


@dataclass(frozen=True)
class MotoServer:
    url: str

    def client(self, service: str = "s3", key: str = "any", secret: str = "any") -> Any:
        """boto3's client of it. Before ``demand_keys`` any keys will do."""
        import boto3

        return boto3.client(
            service, "us-east-1", endpoint_url=self.url, aws_access_key_id=key, aws_secret_access_key=secret
        )

    def fill(self, bucket: str, files: Mapping[str, bytes]) -> None:
        s3 = self.client()
        s3.create_bucket(Bucket=bucket, ACL="public-read")
        for key, data in files.items():
            s3.put_object(Bucket=bucket, Key=key, Body=data, ACL="public-read")

    def issue_keys(self) -> tuple[str, str]:
        """The keys of a user who may read every bucket."""
        iam = self.client("iam")
        iam.create_user(UserName="reader")
        statement = {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        return str(key["AccessKeyId"]), str(key["SecretAccessKey"])

    def demand_keys(self, demand: bool = True) -> None:
        """From here on every request must be signed with keys that were issued; or not any more."""
        count = b"0" if demand else b"1000000"
        headers = {"Content-Type": "text/plain"}  # or it is taken for a form
        request = urllib.request.Request(f"{self.url}/moto-api/reset-auth", count, headers, method="POST")
        urllib.request.urlopen(request, timeout=10).close()


@contextlib.contextmanager
def moto_server() -> Iterator[MotoServer]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, "INITIAL_NO_AUTH_ACTION_COUNT": "1000000", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "moto does not start"
                time.sleep(0.1)
        yield MotoServer(url)
    finally:
        process.terminate()
        process.wait(10)
