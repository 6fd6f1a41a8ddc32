"""Examines a dataset before anybody trains on it; see `tools.doctor.command`."""

from tools.doctor.command import main, make_parser

__all__ = ["main", "make_parser"]
