"""Fetches the details of Semgrep scans and keeps them in a relational database."""

from importlib.metadata import version

__version__ = version("scan-etl")
