"""The bases of all errors that are told in plain words instead of a traceback."""


class InputError(Exception):
    """Bad input: one line a problem, each with what would be right; the commands exit with status 2.

    ConfigError, InfeasibleLayoutError, IncompatibleLayoutError, ModelNotFoundError, ChangedJobError, LockedError and
    StoreRefusedError derive from it.
    """

    @property
    def problems(self) -> list[str]:
        return str(self).splitlines()


class StoreFailedError(Exception):
    """An object store went on failing, however often it was asked again; the commands exit with status 1."""


class StoreRefusedError(InputError):
    """An object store will not do what was asked, however often: no such bucket, access denied."""
