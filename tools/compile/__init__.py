"""Compiles an experiment for devices that are not there; see `tools.compile.command`."""

from tools.compile.command import main, make_parser

__all__ = ["main", "make_parser"]
