"""The one exception that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can put right: a missing file, a malformed row, a setting that contradicts another.

    The message says what is wrong, where (file, line, key) and what to do. The command line prints it without a stack
    trace and exits with status 2.
    """
