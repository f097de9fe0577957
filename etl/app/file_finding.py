"""What `doctor` says of an SQLite file before it is opened: whether it can be written, and what it stands on."""

import os
import re
import shutil
from pathlib import Path
from typing import Final

from etl.app.finding import Finding
from etl.database.engine import holds_database
from etl.errors import DatabaseError

LEAST_FREE_BYTES: Final = 2**30
MOUNTS: Final = Path("/proc/self/mounts")
"""Linux has it."""
NETWORK_FILE_SYSTEMS: Final = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|ceph|glusterfs|lustre|beegfs|gpfs|afs|ocfs2|gfs2|davfs2?"
    r"|fuse\.(?:sshfs|glusterfs|ceph|s3fs|gcsfuse|rclone|davfs|blobfuse\d?|juicefs)"
)


def file_findings(path: Path) -> list[Finding]:
    """Of the file, of the room for it, and of its file system where that is a bad place for it."""
    folder, found = path.absolute().parent, [_file(path)]
    if folder.is_dir():
        found.append(disk_finding(folder, shutil.disk_usage(folder).free))
        if MOUNTS.exists():
            found += file_system_findings(folder.resolve(), MOUNTS.read_text(errors="replace"))
    return found


def _file(path: Path) -> Finding:
    folder, exit_code = path.absolute().parent, DatabaseError.exit_code
    if not folder.is_dir():
        return Finding("file", f"there is no folder {folder}: make it, or change database.url", exit_code)
    if not os.access(folder, os.W_OK):
        sentence = f"the folder {folder} can't be written, where SQLite puts more files: look at its permissions"
        return Finding("file", sentence, exit_code)
    if not holds_database(path):
        return Finding("file", f"there is no {path.absolute()} yet: a run makes it, or `scan-etl db upgrade`")
    try:
        with path.open("r+b"):
            return Finding("file", f"{path.absolute()} can be written")
    except OSError as error:
        sentence = f"{path.absolute()} can't be written ({error.strerror}): look at its owner and permissions"
        return Finding("file", sentence, exit_code)


def disk_finding(folder: Path, free_bytes: int) -> Finding:
    """Whether there is room for the rows to come."""
    free = f"{free_bytes / 2**30:,.1f} GiB free in {folder}"
    if free_bytes < LEAST_FREE_BYTES:
        return Finding("disk", f"only {free}: make room", warning=True)
    return Finding("disk", free)


def file_system_findings(folder: Path, mounts: str) -> list[Finding]:
    """A warning where the mount that holds a folder is a network's. `mounts` is as Linux writes it."""
    kinds = {Path(_unescaped(line.split()[1])): line.split()[2] for line in mounts.splitlines() if line.count(" ") >= 2}
    mount = next((place for place in (folder, *folder.parents) if place in kinds), None)
    if mount is None or not NETWORK_FILE_SYSTEMS.fullmatch(kinds[mount]):
        return []
    sentence = (
        f"{folder} is on a network ({kinds[mount]}), where SQLite's locks aren't reliable: "
        "take a disk of this machine, or a database on a server"
    )
    return [Finding("file system", sentence, warning=True)]


def _unescaped(mount: str) -> str:
    """A blank, say, is written as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount)
