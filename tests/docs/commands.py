"""Finds the command lines in Markdown, docstrings and notebooks, and tells what is wrong with them."""

import argparse
import contextlib
import copy
import importlib.util
import inspect
import io
import operator
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

from absl import flags
from ml_collections import config_flags

import main
from refseg_jax.cli.commands import COMMANDS
from tests.docs.pages import NOTEBOOKS, PAGES, ROOT, SOURCES, blocks, cells, docstrings, prose

#: Languages of fences whose lines are all commands. Other plain fences may hold lines of our programs.
SHELLS = ("bash", "sh", "shell", "console")
#: Programs of others, whose flags are not checked.
OTHERS = frozenset({"cd", "export", "git", "hf", "source"})
#: Placeholder in a command -> a value that is valid there.
PLACEHOLDERS = {
    "--dataset=NAME": "--dataset=scenes",
    "--config=...": "--config=configs/scenes_unires.py",
    "--config=FILE": "--config=configs/scenes_unires.py",
    "--config=configs/FILE.py": "--config=configs/scenes_unires.py",
}
_OURS = re.compile(r"(?:[A-Z_]+=\S+ )*(?:python (?:main\.py|-m)|make|pip|refseg)(?: |$)")
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


class Command(NamedTuple):
    """A command line, and the place where it was found."""

    place: str
    line: str


class _ParsedError(BaseException):
    """Raised once the arguments are parsed, so that nothing runs."""


def all_commands() -> Iterator[Command]:
    """Every command line of the project's texts."""
    for page in PAGES:
        for block in blocks(page):
            if block.language in SHELLS:
                yield from _lines(block.place, block.text)
            elif block.language in ("", "text"):
                yield from _lines(block.place, block.text, only_ours=True)
        yield from _spans(page, prose(page))
    for source in SOURCES:
        for text in docstrings(source):
            yield from _lines(source, text, only_ours=True)
            yield from _spans(source, text)
    for notebook in NOTEBOOKS:
        for cell in cells(notebook):
            shell = re.findall(r"^!((?:.*\\\n)*.*)$", cell, re.MULTILINE)
            # The notebook replaces what stands in braces by the value of a Python expression.
            yield from _lines(notebook, re.sub(r"\{.*?\}", "1", "\n".join(shell)))


def _lines(place: str, text: str, *, only_ours: bool = False) -> Iterator[Command]:
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        # In some docstrings, an explanation follows the command after several spaces.
        line = re.sub(r"\s{2,}[^\s-].*", "", line.strip().removeprefix("$ "))
        if line and not line.startswith("#") and (not only_ours or _OURS.match(line)):
            yield Command(place, line)


def _spans(place: str, text: str) -> Iterator[Command]:
    """Yields the command lines in a sentence, and its flags of `main.py` and fields of a config."""
    for span in _SPAN.findall(text):
        line = " ".join(span.split())
        if re.fullmatch(r"config\.(?!mixture)\w+\.[\w.]+", line):
            line = f"--{line}"
        if _OURS.match(line) or (line.startswith("--config") and "<" not in line):
            yield Command(place, line)


def fault(command: Command) -> str:
    """Why a command would not start, or `""`."""
    # Brackets enclose optional arguments.
    line = re.sub(r" \[(--[^]]*)\]", r" \1", command.line)
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        return str(error)
    if words[0].startswith("--config"):
        return _flags_fault(words)
    return "; ".join(filter(None, map(_fault, _parts(words))))


def _parts(words: list[str]) -> Iterator[list[str]]:
    """Yields the commands of a line, without variables that it sets and programs such as `srun`."""
    part: list[str] = []
    for word in [*words, ";"]:
        if word in (";", "&&", "|", "||", "&"):
            if part:
                yield part
            part = []
        elif word == "python" and word not in part:
            # Drops `srun` or the like before it, with its own flags.
            part = [word]
        elif part or not re.match(r"[A-Za-z_]+=", word):
            part.append(word)


def _fault(words: list[str]) -> str:
    program, *arguments = words
    match program, arguments:
        case "python", []:
            return ""
        case "python", ["main.py", *rest]:
            return _main_fault(rest)
        case "python", ["-m", "pytest" | "pip" | "venv" | "tools.NAME", *_]:
            return ""
        case "python", ["-m", module, *rest]:
            return _module_fault(module, [PLACEHOLDERS.get(word, word) for word in rest])
        case "python", [script, *_] if (ROOT / script).is_file():
            return ""
        case "refseg", [] | ["--help" | "--version" | "NAME"]:
            return ""
        case "refseg", [name, *rest]:
            module = f"tools.{name}"
            return _module_fault(module, rest) if name in COMMANDS else f"refseg has no {name}"
        case "make", _:
            return _make_fault(arguments)
        case "pip", ["install", *rest]:
            return _extras_fault(rest)
        case "pip", ["wheel", *_]:
            return ""
        case _ if program in OTHERS:
            return ""
    return f"{' '.join(words)!r} is no command that is known here (tests/docs/commands.py)"


def _flags_fault(words: list[str]) -> str:
    """As `_main_fault`, for flags without a config: one of the experiments has to have them."""
    chosen = [word for word in words if word.startswith("--config=")]
    files = sorted(path.name for path in ROOT.glob("configs/*_*.py"))
    given = [word for word in words if word not in chosen]
    fields = [word.removeprefix("--config.") for word in given if "=" not in word]
    settings = ["--workdir=.", *(word for word in given if "=" in word)]
    why = ""
    for config in chosen or [f"--config=configs/{name}" for name in files]:
        why = _main_fault([config, *settings], fields)
        if not why:
            break
    return why


def _main_fault(arguments: Sequence[str], fields: Sequence[str] = ()) -> str:
    """Error of `main.py` for its arguments, or `""`; the config is made, and its fields are set.

    Args:
        arguments: arguments of the command line.
        fields: names of other fields that the config must have.
    """
    if not any(word.startswith("--config=") for word in arguments):
        return "main.py needs --config=FILE"
    given = ["main.py", *(PLACEHOLDERS.get(word, word) for word in arguments)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, lock_config=True)
    for flag in flags.FLAGS.flags_by_module_dict()[main.__name__]:
        if flag.name not in values:
            values[flag.name] = copy.deepcopy(flag)
    try:
        with contextlib.chdir(ROOT), mock.patch.object(sys, "argv", given):
            _, *rest = values(given)
            for field in ("steps", *fields):
                operator.attrgetter(field)(values.config)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        return " ".join(str(error).split())
    return f"not a flag: {rest}" if rest else ""


def _module_fault(name: str, arguments: list[str]) -> str:
    """Error of a tool's parser for its arguments, or `""`; nothing runs."""
    if importlib.util.find_spec(name) is None:
        return f"there is no module {name}"
    if not arguments:
        return ""
    module = importlib.import_module(importlib.import_module(name).main.__module__)
    if not hasattr(module, "argparse"):
        source = inspect.getsource(module)
        unknown = [word for word in arguments if word.split("=")[0] not in source]
        return f"{name} does not know {unknown}" if unknown else ""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self: argparse.ArgumentParser, *given: Any) -> None:
        parse(self, *given)
        raise _ParsedError

    said = io.StringIO()
    try:
        with (
            mock.patch.object(argparse.ArgumentParser, "parse_args", parse_only),
            mock.patch.object(sys, "argv", [name, *arguments]),
            contextlib.redirect_stderr(said),
        ):
            # Without arguments, `main` takes those of the process.
            module.main()
    except _ParsedError:
        fields = [word for word in arguments if word.startswith("--config.")]
        chosen = [word for word in arguments if word.startswith("--config=")]
        return _main_fault([*chosen, "--workdir=.", *fields]) if fields else ""
    except SystemExit:
        return said.getvalue().strip().splitlines()[-1]
    raise AssertionError(f"{name} has run: it parses its arguments in a way that is not known here")


def make_targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _make_fault(arguments: list[str]) -> str:
    unknown = {word for word in arguments if "=" not in word} - make_targets()
    return f"make has no target {sorted(unknown)}" if unknown else ""


def _extras_fault(arguments: list[str]) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        extra
        for word in arguments
        if (found := re.fullmatch(r"(?:\.|refseg_jax)\[(.+)\]", word))
        for extra in found[1].split(",")
    }
    unknown = extras - set(project["optional-dependencies"])
    return f"pyproject.toml has no extra {sorted(unknown)}" if unknown else ""
