"""A server of the S3 protocol (moto) on loopback, whose requests can be made to fail.

`python -m tests.s3` prints its port.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pytest

BUCKET = "bucket"


@dataclass
class Fault:
    """A fault of some requests.

    Attributes:
        kind: an HTTP status; "cut": the connection breaks half-way through the request's body;
            "lost": the request is carried out, and the connection breaks before the answer; "hang":
            no answer for 30 s.
        match: a regular expression that finds "METHOD /bucket/key?query" of the requests.
        times: how many requests fail.
        every: the fault applies to every `every`-th request that matches.
    """

    kind: int | str
    match: str = "."
    times: int = 1
    every: int = 1
    seen: int = 0

    def applies_to(self, request: str) -> bool:
        """Return whether a request fails, and count it."""
        if self.times == 0 or not re.search(self.match, request):
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        self.times -= 1
        return True


class FaultyApplication:
    """A WSGI application that wraps moto's, lets requests fail, and keeps a list of requests."""

    def __init__(self, inner: Callable[..., Iterable[bytes]]) -> None:
        self.inner = inner
        self.faults: list[Fault] = []
        self.requests: list[str] = []

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        query = environ.get("QUERY_STRING", "")
        if path == "/_control":
            return self.control(environ, start)
        request = f"{environ['REQUEST_METHOD']} {path}{'?' if query else ''}{query}"
        self.requests.append(request)
        fault = self.find_fault(request)
        if fault is None:
            return self.inner(environ, start)
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if isinstance(fault.kind, int):
            environ["wsgi.input"].read(length)
            return answer_error(environ, start, fault.kind)
        if fault.kind == "hang":
            time.sleep(30)
        elif fault.kind == "cut":
            is_chunked = "HTTP_TRANSFER_ENCODING" in environ
            environ["wsgi.input"].read(65536 if is_chunked else length // 2)
        else:
            list(self.inner(environ, lambda *_: lambda data: None))
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    def find_fault(self, request: str) -> Fault | None:
        """Return the first fault that applies to a request."""
        for fault in self.faults:
            if fault.applies_to(request):
                return fault
        return None

    def control(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Set the faults (POST), and answer with the requests since they were set (GET)."""
        if environ["REQUEST_METHOD"] == "POST":
            faults = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            self.faults = [Fault(**fault) for fault in faults]
            self.requests = []
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(self.requests).encode()]


def answer_error(
    environ: dict[str, Any], start: Callable[..., Any], status: int
) -> Iterable[bytes]:
    """Answer a request with an error of S3."""
    code = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>"
    headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    start(f"{status} {code}", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body.encode()]


def serve() -> None:
    """Run the server until stdin is closed, and print its port."""
    import logging

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    application = FaultyApplication(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    print(server.server_port, flush=True)
    threading.Thread(target=exit_with_the_tests, daemon=True).start()
    server.serve_forever()


def exit_with_the_tests() -> None:
    """End this process when stdin is closed, which happens however the tests end."""
    sys.stdin.read()
    os._exit(0)


class S3:
    """The running server, for tests."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"

    def url(self, folder: str) -> str:
        """Return the URL of a folder in the bucket."""
        return f"s3://{BUCKET}/{folder}"

    def fail(self, *faults: Fault) -> None:
        """Replace the faults; without arguments no request fails."""
        self._request("/_control", "POST", json.dumps([asdict(f) for f in faults]).encode())

    def requests(self) -> list[str]:
        """Return the requests since the last call of `fail`."""
        requests: list[str] = json.loads(self._request("/_control", "GET"))
        return requests

    def _request(self, path: str, method: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.endpoint + path, data, method=method)
        with urllib.request.urlopen(request, timeout=30) as reply:
            return bytes(reply.read())


@contextmanager
def run_server() -> Iterator[S3]:
    """Run the server in a process of its own, and set the environment variables for it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.s3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        s3 = S3(int(process.stdout.readline()))
        s3._request(f"/{BUCKET}", "PUT")
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            patch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
            patch.setenv("AWS_REGION", "us-east-1")
            patch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTKEY")
            patch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret-of-the-test")
            yield s3
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    serve()
