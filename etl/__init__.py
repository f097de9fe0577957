"""Fetches the details of Semgrep scans and keeps them in a relational database."""

__version__ = "0.1.0"
