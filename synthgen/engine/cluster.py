"""Where Ray runs: whether a cluster answers, and what Ray needs on this machine. Imports no Ray."""

import os
import secrets
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from synthgen.errors import InputError
from synthgen.storage.base import Store
from synthgen.storage.local import LocalStore

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 20.0  # of a head node that is busy
EMPTY_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + EMPTY_SETTINGS  # what an HTTP/2 client begins with
SETTINGS = 4  # the frame that an HTTP/2 server, as every gRPC server is, begins with
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"  # in Ray's folder
MOST_BYTES = 103 if sys.platform == "darwin" else 107  # of a socket's path
SHORT_FOLDER = "/tmp"  # what Ray itself takes where no variable says otherwise
WITHOUT = "workers=0 needs no Ray"


def cluster_address(address: str | None) -> str | None:
    """The address of the cluster that is to be used; None: Ray is started on this machine.

    Args:
        address: of the command line; None: RAY_ADDRESS says it.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def refuse_unreachable(address: str) -> None:
    """Raise InputError if no Ray cluster answers at an address within half a minute; Ray tries for many.

    What is not `HOST:PORT` or `ray://HOST:PORT`, such as `auto`, is left to Ray.
    """
    found = endpoint(address)
    if found is None:
        return
    why = fault(*found)
    if why:
        local = f"for Ray on this machine leave out --address and unset RAY_ADDRESS; {WITHOUT}"
        way = f"start it, or give the address of another; {local}"
        raise InputError(f"no Ray cluster answers at {address}: {why}; {way}")


def refuse_unshared(store: Store, shared: bool, nodes: int) -> None:
    """Raise InputError if workers on several machines would write to a folder that each has its own of."""
    if nodes > 1 and not shared and isinstance(store, LocalStore):
        raise InputError(
            f"output.path: {store} is a folder, and the cluster has {nodes} nodes: each would write to its own disk. Give an "
            "object store (s3://…), or output.shared=true if all nodes see this folder under this name"
        )


def endpoint(address: str) -> tuple[str, int] | None:
    """Host and port of an address; None: it is of another form.

    Raises:
        InputError: it names no host and port.
    """
    if address == "auto":
        return None
    scheme = address.partition("://")[0] if "://" in address else ""
    if scheme in ("http", "https"):
        way = "give HOST:6379, or ray://HOST:10001"
        raise InputError(f"{address} is the address of a dashboard, not of a cluster: {way}")
    if scheme not in ("", "ray"):
        return None
    try:
        parts = urlsplit(address if scheme else f"ray://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None:
        way = "give HOST:PORT, such as 10.0.0.5:6379"
        raise InputError(f"{address!r} is no address of a Ray cluster: {way}")
    return host, port


def fault(host: str, port: int) -> str:
    """Why no gRPC server can be talked to at a port; empty: one answers."""
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return ""  # it would answer to nobody who shows no certificate
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(PREFACE)
            head = connection.recv(9)
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "" if head[3:4] == bytes([SETTINGS]) else "something else than Ray listens there"


def ray_folder() -> str | None:
    """A folder for Ray's sockets where RAY_TMPDIR's or TMPDIR's is too long; None: Ray's choice will do.

    Raises:
        InputError: there is no short one that can be written to.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    if chosen is None and sys.platform.startswith("linux"):
        chosen = os.environ.get("TMPDIR")
    if chosen is None or len(os.fsencode(chosen + SOCKET)) <= MOST_BYTES:
        return None
    for name in ("ray", f"ray-{os.getuid()}"):
        folder = Path(SHORT_FOLDER, name)
        if _can_write(folder):
            return str(folder)
    most = MOST_BYTES - len(SOCKET)
    raise InputError(
        f"the name of the folder for temporary files, {chosen}, is too long for Ray's sockets, and "
        f"{SHORT_FOLDER} cannot be written to: set RAY_TMPDIR to a folder of at most {most} characters; "
        f"or {WITHOUT}"
    )


def provide_token() -> None:
    """Give Ray a token for this process and its workers, where the home folder cannot hold one."""
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if given or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    try:
        folder = Path.home() / ".ray"
        kept = (folder / "auth_token").exists() or _can_write(folder)
    except (RuntimeError, OSError):  # there is no home, or it cannot be looked into
        kept = False
    if not kept:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _can_write(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made if it is not there."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return False
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
