"""A real S3-protocol server (moto) on loopback that can be told to fail: `python -m tests.s3` prints its port."""

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
    """What befalls requests.

    Attributes:
        kind: an HTTP status; "cut": the connection breaks half-way through the request's body; "lost": the request is carried
            out, and the connection breaks before the answer; "hang": no answer for 30 s.
        match: of "METHOD /bucket/key?query".
        times: how many requests, and every how many-th of those that match.
    """

    kind: int | str
    match: str = "."
    times: int = 1
    every: int = 1
    seen: int = 0

    def strikes(self, request: str) -> bool:
        if self.times == 0 or not re.search(self.match, request):
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        self.times -= 1
        return True


class Faulty:
    """A WSGI application before moto's: lets requests fail as it was told, and keeps a list of them."""

    def __init__(self, inner: Callable[..., Iterable[bytes]]) -> None:
        self.inner, self.faults, self.requests = inner, list[Fault](), list[str]()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        if path == "/_control":
            return self.control(environ, start)
        request = f"{environ['REQUEST_METHOD']} {path}{'?' if query else ''}{query}"
        self.requests.append(request)
        fault = next((f for f in self.faults if f.strikes(request)), None)
        if fault is None:
            return self.inner(environ, start)
        if isinstance(fault.kind, int):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return answer(environ, start, fault.kind)
        if fault.kind == "hang":
            time.sleep(30)
        elif fault.kind == "cut":
            in_chunks = "HTTP_TRANSFER_ENCODING" in environ
            environ["wsgi.input"].read(
                65536 if in_chunks else int(environ.get("CONTENT_LENGTH") or 0) // 2
            )
        else:
            list(self.inner(environ, lambda *_: lambda data: None))
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    def control(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """POST: the faults to come; GET: the requests since."""
        if environ["REQUEST_METHOD"] == "POST":
            told = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            self.faults, self.requests = [Fault(**fault) for fault in told], []
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(self.requests).encode()]


def answer(environ: dict[str, Any], start: Callable[..., Any], status: int) -> Iterable[bytes]:
    code = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>as told</Message></Error>".encode()
    start(
        f"{status} {code}",
        [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))],
    )
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def serve() -> None:
    import logging

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = make_server(
        "127.0.0.1", 0, Faulty(DomainDispatcherApplication(create_backend_app)), threaded=True
    )
    print(server.server_port, flush=True)
    threading.Thread(
        target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True
    ).start()  # with the tests, however they end
    server.serve_forever()


class S3:
    """The running server, as tests use it."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"

    def url(self, folder: str) -> str:
        return f"s3://{BUCKET}/{folder}"

    def fail(self, *faults: Fault) -> None:
        """Let requests fail from now on; with no faults, none."""
        self._request("/_control", "POST", json.dumps([asdict(f) for f in faults]).encode())

    def requests(self) -> list[str]:
        """The requests since `fail`."""
        found: list[str] = json.loads(self._request("/_control", "GET"))
        return found

    def _request(self, path: str, method: str, data: bytes | None = None) -> bytes:
        with urllib.request.urlopen(
            urllib.request.Request(self.endpoint + path, data, method=method), timeout=30
        ) as reply:
            return bytes(reply.read())


@contextmanager
def running() -> Iterator[S3]:
    """The server in a process of its own, and the environment that leads to it."""
    command, pipe = [sys.executable, "-m", "tests.s3"], subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
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
