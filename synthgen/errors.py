"""The bases of all errors that are reported as plain messages instead of tracebacks.

`explain` also turns common errors of the system and of missing packages into such messages.
"""

import errno
import re
from importlib.metadata import PackageNotFoundError, requires

DISTRIBUTION = "synthgen-layouts"
RESUME_ADVICE = "finished work is kept, so run the same command again to continue"
UNSUPPORTED_ADVICE = (
    "the file system does not support this; use a folder on another one, such as a local disk"
)
UNREACHABLE_ADVICE = f"check the disk or file server; {RESUME_ADVICE}"
DISK_FULL_ADVICE = f"free some space, or use another output folder; {RESUME_ADVICE}"
ADVICE = {
    errno.ENOSPC: DISK_FULL_ADVICE,
    errno.EDQUOT: DISK_FULL_ADVICE,
    errno.EACCES: "use another folder, or change the permissions of this one",
    errno.EROFS: "use another folder: this one is read-only",
    errno.ENOENT: "check the path",
    errno.EISDIR: "give the name of a file",
    errno.ENOTDIR: "give the name of a folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit of open files: ulimit -n 65536",
    errno.ENFILE: "the machine has too many open files; close other programs",
    errno.EEXIST: "the name is in use, or is a broken link; give another name",
    errno.ELOOP: "a link refers to itself; give another path",
    errno.ENOTEMPTY: "use another folder, or empty this one",
    errno.EBUSY: "another program is using it; close that program, then run the same command again",
    errno.EFBIG: "the file is too large for this file system; use a folder on another one",
    errno.EINVAL: UNSUPPORTED_ADVICE,
    errno.ENOSYS: UNSUPPORTED_ADVICE,
    errno.ENOTSUP: UNSUPPORTED_ADVICE,
    errno.EOPNOTSUPP: UNSUPPORTED_ADVICE,
    errno.EPERM: UNSUPPORTED_ADVICE,
    errno.EXDEV: UNSUPPORTED_ADVICE,
    errno.EIO: UNREACHABLE_ADVICE,
    errno.ENXIO: UNREACHABLE_ADVICE,
    errno.ENODEV: UNREACHABLE_ADVICE,
    errno.ESTALE: UNREACHABLE_ADVICE,
    errno.ENOTCONN: UNREACHABLE_ADVICE,
    errno.ETIMEDOUT: UNREACHABLE_ADVICE,
    errno.EHOSTDOWN: UNREACHABLE_ADVICE,
    errno.EHOSTUNREACH: UNREACHABLE_ADVICE,
}
"""What a user can do about an error of the system, by its number."""
AMBIGUOUS_CODES = {
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EXDEV,
    errno.ENXIO,
    errno.ENODEV,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}
"""Errors that not only file systems raise: the advice holds only if the error names a file."""


def remove_addresses(text: str) -> str:
    """Return a message without Python's representations such as `<_io.BytesIO object at 0x7f…>`."""
    return re.sub(r" ?<[^<>\n]* at 0x[0-9a-fA-F]+>", "", text)


def get_first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    lines = remove_addresses(str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class InputError(Exception):
    """Bad input: one line for each problem, which says what would be right.

    The commands exit with status 2. ConfigError, InfeasibleLayoutError, IncompatibleLayoutError,
    ModelNotFoundError, ChangedJobError, LockedError and StoreRefusedError derive from it.

    Examples:
        >>> try:
        ...     open_dataset("out/nothing")
        ... except InputError as error:
        ...     print(len(error.problems))
        1
    """

    @property
    def problems(self) -> list[str]:
        """The problems, one line each."""
        return remove_addresses(str(self)).splitlines()


class StoreFailedError(Exception):
    """An object store still failed after all retries; the commands exit with status 1."""


class StoreRefusedError(InputError):
    """An object store refused a request, and retries would not help: no such bucket, no access."""


def explain(error: InputError | StoreFailedError | OSError | ModuleNotFoundError) -> list[str]:
    """Return what to report to the user: one line for each problem, with what to do next.

    Raises:
        OSError, ModuleNotFoundError: the same error, if the user can do nothing about it.
    """
    if isinstance(error, InputError):
        return error.problems
    if isinstance(error, StoreFailedError):
        return [f"{error}; {RESUME_ADVICE}"]
    if isinstance(error, ModuleNotFoundError):
        return [explain_missing_module(error)]
    # The name is compared, so that Pillow is not imported.
    if type(error).__name__ == "UnidentifiedImageError":
        return [f"{get_first_line(error)}; remove the file, or replace it with an image"]
    if error.errno not in ADVICE:
        raise error
    if error.errno in AMBIGUOUS_CODES and not error.filename:
        raise error
    place = f"{error.filename}: " if error.filename else ""
    reason = (error.strerror or str(error)).lower()
    return [f"{place}{reason}; {ADVICE[error.errno]}"]


def explain_missing_module(error: ModuleNotFoundError) -> str:
    """Return a message that names the package of a missing module, and how to install it.

    Raises:
        ModuleNotFoundError: the same error, if the module belongs to no dependency of synthgen.
    """
    module = str(error.name).partition(".")[0]
    try:
        requirements = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        requirements = []
    for requirement in requirements:
        package = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if re.sub(r"[-.]", "_", package).lower() == module.lower():
            extra = re.search(r"extra == ['\"](\w+)", requirement)
            target = f"{DISTRIBUTION}[{extra[1]}]" if extra else DISTRIBUTION
            return f"{package} is not installed; install it: pip install '{target}'"
    raise error
