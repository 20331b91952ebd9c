"""The one base of all errors that say what is wrong with what the user gave."""


class InputError(Exception):
    """Bad input: one line a problem, each with what would be right; the commands exit with status 2.

    ConfigError, InfeasibleLayoutError, IncompatibleLayoutError, ModelNotFoundError, ChangedJobError and LockedError
    derive from it.
    """

    @property
    def problems(self) -> list[str]:
        return str(self).splitlines()
