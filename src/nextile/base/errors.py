"""What went wrong, in one line with the remedy, and the exit code that belongs to it."""


class NextileError(Exception):
    """Work that cannot go on: bad data, a full disk, a broken folder. The message is one line and names the remedy."""

    exit_code = 1


class UsageError(NextileError):
    """Something was asked for wrongly: an unknown setting, a bad value, a missing argument."""

    exit_code = 2
