"""The one exception that ends a command with a single line instead of a traceback."""


class UserError(ValueError):
    """Bad input. Its message names the value, the constraint and the remedy; the process exits with code 2."""


class LocalError(UserError):
    """One that the other processes do not have: this one tells it, whatever its rank."""
