"""The exception for errors that the user can fix."""


class UserError(Exception):
    """An error that the user can fix: a missing file, a malformed row, options that contradict each other.

    The message says what is wrong, where (file, line, key) and what to do. The command line prints it without a traceback
    and exits with status 2.
    """
