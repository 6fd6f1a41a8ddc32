"""The base class of errors that the user can fix."""


class UserError(Exception):
    """An error of one line: the file (or field), the reason, the cure.

    Commands print the line and exit with status 1.
    """
