"""Measures what a core of the input pipeline delivers; see `tools.feed.command`."""

from tools.feed.command import main, make_parser

__all__ = ["main", "make_parser"]
