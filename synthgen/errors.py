"""The bases of all errors that are told in plain words instead of a traceback, and what to say of others that a user meets."""

import errno
import re
from importlib.metadata import PackageNotFoundError, requires

DISTRIBUTION = "synthgen-layouts"
UNABLE = "the file system there cannot do that; give a folder on another, such as a local disk"
UNREACHED = "see that the disk or file server there is well; what was finished is kept, and the same command goes on"
NEXT = {
    errno.ENOSPC: "free some room, or give another output folder; what was finished is kept, and the same command goes on",
    errno.EDQUOT: "free some room, or give another output folder; what was finished is kept, and the same command goes on",
    errno.EACCES: "give another folder, or make it yours to write to",
    errno.EROFS: "give another folder: this one cannot be written to",
    errno.ENOENT: "check the path",
    errno.EISDIR: "give the name of a file",
    errno.ENOTDIR: "give the name of a folder",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit of open files: ulimit -n 65536",
    errno.ENFILE: "the machine has too many files open; close other programs",
    errno.EEXIST: "the name is taken, or is a link that leads nowhere; give another",
    errno.ELOOP: "a link leads to itself; give another path",
    errno.ENOTEMPTY: "give another folder, or empty this one",
    errno.EBUSY: "another program has it open; close that, and the same command goes on",
    errno.EFBIG: "this file system takes no file so large; give a folder on another",
    errno.EINVAL: UNABLE,
    errno.ENOSYS: UNABLE,
    errno.ENOTSUP: UNABLE,
    errno.EOPNOTSUPP: UNABLE,
    errno.EPERM: UNABLE,
    errno.EXDEV: UNABLE,
    errno.EIO: UNREACHED,
    errno.ENXIO: UNREACHED,
    errno.ENODEV: UNREACHED,
    errno.ESTALE: UNREACHED,
    errno.ENOTCONN: UNREACHED,
    errno.ETIMEDOUT: UNREACHED,
    errno.EHOSTDOWN: UNREACHED,
    errno.EHOSTUNREACH: UNREACHED,
}
NAMED = {code for code, what in NEXT.items() if what in (UNABLE, UNREACHED)} - {
    errno.EIO,
    errno.ESTALE,
}
"""What else than a file system gives these too: they are told of a file alone."""


def without_addresses(text: str) -> str:
    """A message without objects as Python shows them, `<_io.BytesIO object at 0x7f…>`: they say nothing to a user."""
    return re.sub(r" ?<[^<>\n]* at 0x[0-9a-fA-F]+>", "", text)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next(iter(without_addresses(str(error)).strip().splitlines()), type(error).__name__)


class InputError(Exception):
    """Bad input: one line a problem, each with what would be right; the commands exit with status 2.

    ConfigError, InfeasibleLayoutError, IncompatibleLayoutError, ModelNotFoundError, ChangedJobError, LockedError and
    StoreRefusedError derive from it.
    """

    @property
    def problems(self) -> list[str]:
        return without_addresses(str(self)).splitlines()


class StoreFailedError(Exception):
    """An object store went on failing, however often it was asked again; the commands exit with status 1."""


class StoreRefusedError(InputError):
    """An object store will not do what was asked, however often: no such bucket, access denied."""


def explain(error: InputError | StoreFailedError | OSError | ModuleNotFoundError) -> list[str]:
    """What to tell the user, a line a problem, each with what to do next.

    Raises:
        OSError, ModuleNotFoundError: the same again, if it is none that a user can do something about.
    """
    if isinstance(error, InputError):
        return error.problems
    if isinstance(error, StoreFailedError):
        return [f"{error}; all that was finished is kept, and the same command goes on"]
    if isinstance(error, ModuleNotFoundError):
        return [missing_module(error)]
    if type(error).__name__ == "UnidentifiedImageError":  # Pillow's, which is not imported for it
        return [f"{first_line(error)}; remove the file, or put an image in its place"]
    if error.errno not in NEXT or (error.errno in NAMED and not error.filename):
        raise error
    place = f"{error.filename}: " if error.filename else ""
    return [f"{place}{(error.strerror or str(error)).lower()}; {NEXT[error.errno]}"]


def missing_module(error: ModuleNotFoundError) -> str:
    """Which package holds a module that is not installed.

    Raises:
        ModuleNotFoundError: the same again, if it is none of those that this project names.
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
            what = f"{DISTRIBUTION}[{extra[1]}]" if extra else DISTRIBUTION
            return f"{package} is not installed; install it: pip install '{what}'"
    raise error
