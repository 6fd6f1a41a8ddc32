"""Imports published weights: tables of names, readers of files, and one strict loader."""
