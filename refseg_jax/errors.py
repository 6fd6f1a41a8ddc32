"""The errors that a person can cure."""


class UserError(Exception):
    """One line: the file (or field), the reason, the cure. Command lines print it and exit 1."""
