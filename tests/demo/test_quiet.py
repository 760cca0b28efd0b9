"""What the demo server says on its terminal: its URL, and nothing about clients that come and go."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.parse


def test_a_client_that_goes_away_in_mid_body_leaves_no_traceback() -> None:
    command = [sys.executable, "-m", "xnatfs.demo", "--port", "0", "--guests", "on", "--die-with-parent"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = urllib.parse.urlsplit(server.stdout.readline()).port
        path = "/data/experiments/XNAT_E00040/scans/1/resources/NIFTI/files/bold_1g.nii"
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic ZGVtbzpkZW1v\r\n\r\n"  # demo:demo
        with socket.create_connection(("127.0.0.1", port or 0)) as client:
            client.sendall(request.encode())
            assert b"200 OK" in client.recv(65536)
        server.terminate()
        _, errors = server.communicate(timeout=20)
    finally:
        server.kill()
        server.wait()
    assert (server.returncode, errors) == (0, "")
