"""Reads a CycloneDX list of components from stdin, and writes it with our version, and without any address.

The pages of projects and tools say nothing of what is installed.
"""

import json
import sys
from typing import Any

from etl import __version__


def without_addresses(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name != "externalReferences"}


if __name__ == "__main__":
    listed = json.load(sys.stdin, object_hook=without_addresses)
    listed["metadata"]["component"]["version"] = __version__
    json.dump(listed, sys.stdout, indent=2)
