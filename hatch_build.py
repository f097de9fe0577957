"""What a package index shows: the project's addresses, and README.md with links that lead somewhere from there, too.

The hosted CI says in its environment where the repository is. Elsewhere nobody knows: then a link is its text.
"""

import os
import re
from pathlib import Path
from typing import Any, Final

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE_LINK: Final = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?!\w+:)(?P<target>[^)\s]+)\)")


class IndexPage(MetadataHookInterface):
    """Sets `readme` and `urls`."""

    PLUGIN_NAME = "index-page"

    def update(self, metadata: dict[str, Any]) -> None:
        """A source archive has both from when it was made."""
        if "readme" in metadata:
            return
        server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
        repository = f"{server}/{name}" if server and name else ""
        tag = f"v{metadata['version']}"
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": with_whole_links(text, repository, tag)}
        if repository:
            metadata["urls"] = addresses(repository, tag)


def with_whole_links(text: str, repository: str, tag: str) -> str:
    """Markdown whose links go to the files of this version; without a repository they are their text."""

    def whole(link: re.Match[str]) -> str:
        if not repository:
            return link["text"]
        view = "raw" if link["image"] else "blob"
        target = f"README.md{link['target']}" if link["target"].startswith("#") else link["target"]
        return f"{link['image']}[{link['text']}]({repository}/{view}/{tag}/{target})"

    return _RELATIVE_LINK.sub(whole, text)


def addresses(repository: str, tag: str) -> dict[str, str]:
    """The project's pages, by the names that indexes know."""
    files = f"{repository}/blob/{tag}"
    return {
        "Repository": repository,
        "Documentation": f"{files}/docs/deploy.md",
        "Changelog": f"{files}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
        "Security": f"{files}/SECURITY.md",
    }
