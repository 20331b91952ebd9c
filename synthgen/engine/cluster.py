"""The Ray cluster: whether it answers, and what Ray needs on this machine. Imports no Ray."""

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
ANSWER_SECONDS = 20.0  # a busy head node takes some seconds
EMPTY_SETTINGS_FRAME = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + EMPTY_SETTINGS_FRAME
"""The first bytes that an HTTP/2 client sends."""
SETTINGS_FRAME_TYPE = 4
"""The type of the first frame that an HTTP/2 server sends; every gRPC server is one."""
LONGEST_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"
"""The longest path of a socket below Ray's temporary folder."""
MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""The longest path of a socket that the operating system accepts."""
SHORT_FOLDER = "/tmp"  # Ray's own default if no variable names a folder
NO_RAY_HINT = "workers=0 needs no Ray"


def find_cluster_address(address: str | None) -> str | None:
    """Return the address of the cluster to use; None if Ray is to be started on this machine.

    Args:
        address: the address of the command line; None to use RAY_ADDRESS.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def refuse_unreachable(address: str) -> None:
    """Raise InputError if no Ray cluster answers at an address within half a minute.

    Ray itself tries for many minutes. An address of another form than `HOST:PORT` or
    `ray://HOST:PORT`, such as `auto`, is not checked: Ray resolves it.
    """
    endpoint = parse_endpoint(address)
    if endpoint is None:
        return
    host, port = endpoint
    error = probe_server(host, port)
    if error:
        raise InputError(
            f"no Ray cluster answers at {address}: {error}; start it, or give the address of "
            "another; for Ray on this machine leave out --address and unset RAY_ADDRESS; "
            f"{NO_RAY_HINT}"
        )


def refuse_unshared(store: Store, shared: bool, nodes: int) -> None:
    """Raise InputError if workers on several machines would each write to a folder of their own.

    Args:
        shared: all machines see the output folder under the same name.
        nodes: the number of machines.
    """
    if nodes > 1 and not shared and isinstance(store, LocalStore):
        raise InputError(
            f"output.path: {store} is a folder, and the cluster has {nodes} nodes: each would "
            "write to its own disk. Give an object store (s3://…), or output.shared=true if all "
            "nodes see this folder under this name"
        )


def parse_endpoint(address: str) -> tuple[str, int] | None:
    """Return the host and port of an address; None if the address has another form.

    Raises:
        InputError: the address should have a host and a port and does not.
    """
    if address == "auto":
        return None
    scheme = address.partition("://")[0] if "://" in address else ""
    if scheme in ("http", "https"):
        raise InputError(
            f"{address} is the address of a dashboard, not of a cluster: "
            "give HOST:6379, or ray://HOST:10001"
        )
    if scheme not in ("", "ray"):
        return None
    try:
        parts = urlsplit(address if scheme else f"ray://{address}")
        host = parts.hostname
        port = parts.port
    except ValueError:
        host = None
        port = None
    if not host or port is None:
        raise InputError(
            f"{address!r} is not the address of a Ray cluster: "
            "give HOST:PORT, such as 10.0.0.5:6379"
        )
    return host, port


def probe_server(host: str, port: int) -> str:
    """Return why no gRPC server answers at a port; empty if one does."""
    try:
        with socket.create_connection((host, port), CONNECT_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return ""  # the server would not answer without a certificate
            connection.settimeout(ANSWER_SECONDS)
            connection.sendall(HTTP2_PREFACE)
            frame_header = connection.recv(9)
    except TimeoutError:
        return "no answer"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    if frame_header[3:4] == bytes([SETTINGS_FRAME_TYPE]):
        return ""
    return "something other than Ray listens there"


def find_ray_folder() -> str | None:
    """Return a short folder for Ray's sockets if the chosen one is too long for them.

    The chosen one is that of RAY_TMPDIR or TMPDIR.

    Returns:
        The folder; None if Ray's own choice is short enough.

    Raises:
        InputError: there is no short folder that can be written to.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    if chosen is None and sys.platform.startswith("linux"):
        chosen = os.environ.get("TMPDIR")
    if chosen is None or len(os.fsencode(chosen + LONGEST_SOCKET)) <= MAX_SOCKET_BYTES:
        return None
    for name in ("ray", f"ray-{os.getuid()}"):
        folder = Path(SHORT_FOLDER, name)
        if _can_write(folder):
            return str(folder)
    max_length = MAX_SOCKET_BYTES - len(LONGEST_SOCKET)
    raise InputError(
        f"the name of the folder for temporary files, {chosen}, is too long for Ray's sockets, "
        f"and {SHORT_FOLDER} cannot be written to: set RAY_TMPDIR to a folder of at most "
        f"{max_length} characters; or {NO_RAY_HINT}"
    )


def provide_token() -> None:
    """Give Ray a token for this process and its workers if the home folder cannot store one."""
    if "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ:
        return
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    try:
        folder = Path.home() / ".ray"
        can_store = (folder / "auth_token").exists() or _can_write(folder)
    except (RuntimeError, OSError):  # there is no home folder, or it cannot be read
        can_store = False
    if not can_store:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _can_write(folder: Path) -> bool:
    """Return whether files can be created in a folder; it is created if it does not exist."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return False
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
