"""The base class of errors that the user can fix, and what they say of names and of strange files."""

#: Beginning of a file, in small letters -> what stands there in the place of the file that is meant.
_INSTEAD = {
    b"version https://": "is a Git LFS pointer, not the file; run git lfs pull",
    b"<!doctype h": "is a web page, not the file; download the file itself",
    b"<html": "is a web page, not the file; download the file itself",
}


class UserError(Exception):
    """An error of one line: the file (or field), the reason, the cure.

    Commands print the line and exit with status 1. Line ends and control characters in it, which come
    from names, are shown as escapes. Further arguments are further lines, for an error that lists
    others.
    """

    def __str__(self) -> str:
        return "\n".join(escaped(str(line)) for line in self.args)


def escaped(text: str) -> str:
    r"""A text on one line: characters that do not print become their escapes (`\n`, `\x1b`, `\udcff`).

    Letters of all languages print; bytes of a name that are no UTF-8 do not.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(name: object) -> str:
    """A name from a file for an error of one line: line ends and escapes are not printed as they are.

    The middle of a name of more than 300 characters is left out.
    """
    text = str(name)
    if len(text) > 300:
        text = f"{text[:120]}...{text[-170:]}"
    return text if text.isprintable() else ascii(text)


def instead(start: bytes) -> str:
    """What a file is that stands in the place of any other, with the cure; `""` for all other files.

    Clones without Git LFS have pointers of three lines, and failed downloads are often web pages.

    Args:
        start: the first 16 bytes of the file, or more.
    """
    # Servers often send blank lines first.
    small = start[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((what for mark, what in _INSTEAD.items() if small.startswith(mark)), "")
