"""What a package index shows of us: README.md, the addresses of the project."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from etl import __version__

ROOT = Path(__file__).parents[2]
FILES = f"https://code.example/acme/scan-etl/blob/v{__version__}/"
IMAGES = FILES.replace("/blob/", "/raw/")


def metadata(**variables: str) -> dict[str, Any]:
    """What a build would write into the archives."""
    hosted = ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY")
    environment = {name: value for name, value in os.environ.items() if name not in hosted} | variables
    printed = subprocess.run(
        [sys.executable, "-m", "hatchling", "metadata"], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    found: dict[str, Any] = json.loads(printed.stdout)
    return found


def targets(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text)


def relative(links: list[str]) -> list[str]:
    return [link for link in links if not re.match(r"\w+:", link)]


def test_links_lead_to_the_files_of_this_version() -> None:
    """The hosted CI says where they are; each is one that there is. An image is the file, and no page about it."""
    found = metadata(GITHUB_SERVER_URL="https://code.example", GITHUB_REPOSITORY="acme/scan-etl")
    links = targets(found["readme"]["text"])
    written = relative(targets((ROOT / "README.md").read_text()))
    ours = [url.replace(IMAGES, FILES) for url in (*links, *found["urls"].values()) if url.startswith((FILES, IMAGES))]

    assert relative(links) == []
    assert {FILES + (link if link[0] != "#" else f"README.md{link}") for link in written} <= {*ours}
    assert (
        [link for link in links if link.endswith(".png")] == [link for link in links if link.startswith(IMAGES)] != []
    )
    assert [url for url in ours if not (ROOT / url.removeprefix(FILES).partition("#")[0]).exists()] == []
    assert found["urls"]["Repository"] == "https://code.example/acme/scan-etl"


def test_without_an_address_there_is_no_link_that_leads_nowhere() -> None:
    """Who builds it at home doesn't know where the files will be."""
    found = metadata()

    assert relative(targets(found["readme"]["text"])) == []
    assert "urls" not in found
