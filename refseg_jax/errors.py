"""The base class of errors that the user can fix, and how they show names."""


class UserError(Exception):
    """An error of one line: the file (or field), the reason, the cure.

    Commands print the line and exit with status 1.
    """


def shown(name: object) -> str:
    """A name from a file for an error of one line: line ends and escapes are not printed as they are.

    The middle of a name of more than 300 characters is left out.
    """
    text = str(name)
    if len(text) > 300:
        text = f"{text[:120]}...{text[-170:]}"
    return text if text.isprintable() else ascii(text)
