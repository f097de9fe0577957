"""Deployments, and one page of the repositories of one, read tolerantly. Pure.

An entry that can't be used is noted and skipped; a page that is none raises, as a page of scans does.
"""

from typing import Any, NamedTuple, cast

from etl.errors import ItemError, TransientError
from etl.model import Deployment, Drift, Pair, Repository
from etl.transform.fields import DEPLOYMENT, REPOSITORY, Level, leftovers, note_unknown, take
from etl.transform.privacy import KEEP, Privacy
from etl.transform.readers import DRIFT_ODD_TYPE, OddError, integer
from etl.transform.sanitize import DRIFT_OUT_OF_RANGE, Notes, clean, clean_number, clean_text


class RepositoryPage(NamedTuple):
    """The repositories of one page, each once. `drift` has the deployment for each."""

    repositories: tuple[Repository, ...]
    drift: tuple[tuple[Drift, Pair], ...]


def read_repositories(deployment_id: int, document: object, privacy: Privacy = KEEP) -> RepositoryPage:
    """The repositories of a decoded answer. TransientError for one that is no page: the next answer may be."""
    entries = document.get("projects") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise TransientError("the list of repositories has an unexpected form", kind="odd_page", http_status=200)
    notes: Notes = {}
    found = {}
    for entry in entries:
        fields = _fields(entry, REPOSITORY, notes, privacy)
        if fields is not None:
            found[fields[0]] = Repository(fields[0], **fields[1])
    drift = tuple((note, Pair(deployment_id, 0)) for note in privacy.drift(notes))
    return RepositoryPage(tuple(found.values()), drift)


def read_deployments(document: object, privacy: Privacy = KEEP) -> tuple[Deployment, ...]:
    """The deployments of a decoded answer of `GET /api/v1/deployments`; none where there are none."""
    entries = document.get("deployments") if isinstance(document, dict) else None
    read = [_fields(entry, DEPLOYMENT, {}, privacy) for entry in entries] if isinstance(entries, list) else []
    return tuple(Deployment(fields[0], **fields[1]) for fields in read if fields is not None)


def _fields(entry: object, level: Level, notes: Notes, privacy: Privacy) -> tuple[int, dict[str, Any]] | None:
    """The id and the columns of an entry; None, with the reason in the notes, for one without an id."""
    path = level.prefix.rstrip(".")
    if not isinstance(entry, dict):
        notes[Drift(path, DRIFT_ODD_TYPE)] = None
        return None
    try:
        cleaned = clean(clean(entry, path, 2, notes, clean_text), path, 2, notes, clean_number)
        extra = cast(dict[str, Any], cleaned)
        number = integer(extra.pop("id", None))
        if number <= 0:
            raise OddError(DRIFT_OUT_OF_RANGE)
    except OddError as odd:
        notes[Drift(f"{level.prefix}id", odd.kind)] = None
        return None
    except ItemError:  # nested too deep
        notes[Drift(path, DRIFT_OUT_OF_RANGE)] = None
        return None
    note_unknown(extra, level, notes)
    columns = take(extra, level, notes)
    return number, columns | {"extra": privacy.left_of(leftovers(extra, level), level.prefix) or None}
