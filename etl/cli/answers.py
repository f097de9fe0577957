"""The commands about the API's answers: which rows one becomes, and what came other than known."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from typing import Any

import click

from etl.app.intake import open_database
from etl.app.privacy import privacy_of
from etl.cli.options import PATH, Age, as_json, common, settings_of, wants_json
from etl.errors import ConfigError, ItemError, TransientError
from etl.model import Pair, ScanRows
from etl.pairs.lines import opened
from etl.store import drift
from etl.telemetry.reporter import print_result, print_table
from etl.transform.privacy import Privacy
from etl.transform.readers import OddError, integer
from etl.transform.sanitize import decode
from etl.transform.scan import flatten
from etl.transform.search_page import Page, read_page

DAY_SECONDS = 86_400.0
NEW_DRIFT_EXIT = 1

Row = Mapping[str, Any]
Answer = dict[str, Any]
"""What an answer becomes: its ids, `tables` with the rows of each, and `drift`."""


@click.command("inspect")
@click.argument("file", type=PATH, metavar="FILE|-")
@as_json
@common
@click.pass_context
def inspect_command(ctx: click.Context, file: str) -> None:
    """Show which rows a saved answer of the API becomes, and where it differs from what is documented.

    It needs no server and no database. FILE (`-` is stdin) holds the details of a scan or a page of the search, or one
    of those a line.
    """
    privacy = privacy_of(settings_of(ctx))
    name = "stdin" if file == "-" else file
    answers: list[Answer] = []
    refused = 0
    with opened(file, name) as stream:
        for line, body in _bodies(stream):
            try:
                found = _answers(body, privacy)
            except (ItemError, TransientError, ValueError) as error:
                refused += 1
                click.echo(f"{name}:{line}: {error}", err=True)
                continue
            answers += found
            if not wants_json(ctx):
                _show(found)
    if not answers:
        raise ConfigError(f"{name} holds no answer of the API: give the JSON of a scan's details, or of a search")
    if wants_json(ctx):
        print_result({"answers": answers, "refused": refused}, as_json=True)


def _bodies(stream: io.BufferedIOBase) -> Iterator[tuple[int, bytes]]:
    """Each document and the line where it begins: one a line, or one that spans them all."""
    lines = ((number, line) for number, line in enumerate(stream, start=1) if line.strip())
    for number, line in lines:
        try:
            decode(line)
        except (ValueError, ItemError):
            yield number, line + stream.read()
        else:
            yield number, line
            yield from lines


def _answers(body: bytes, privacy: Privacy) -> list[Answer]:
    """What a document becomes. ValueError, ItemError or TransientError for one that is no answer."""
    document = decode(body)
    if isinstance(document, dict) and "scans" in document:
        return _listed(read_page(_id(document["scans"], "deployment_id"), document, privacy))
    pair = Pair(_id([document], "deployment_id"), _id([document], "id"))
    return [_flattened(flatten(pair, document, datetime.now(UTC), privacy))]


def _id(entries: object, name: str) -> int:
    """The first id of this name that is one; 0 where there is none."""
    for entry in entries if isinstance(entries, list) else ():
        try:
            return integer(entry[name])
        except (OddError, LookupError, TypeError):
            continue
    return 0


def _flattened(rows: ScanRows) -> Answer:
    tables = {
        "scans": [{**_with_extra(rows.scan), "content_hash": rows.content_hash}],
        "scan_products": [{"product": product} for product in rows.products],
        "scan_meta": [_with_extra(rows.meta)],
        "scan_stats": [_with_extra(rows.stats)],
        "scan_languages": list(rows.languages),
        "scan_stat_items": [item._asdict() for item in rows.items],
    }
    return _answer(rows.pair, tables, [one._asdict() for one in rows.drift])


def _listed(page: Page) -> list[Answer]:
    """Each listing of a page; what is odd about an entry that names no scan has an answer without rows."""
    found = []
    drift_of: dict[Pair, list[Row]] = {}
    for note, pair in page.drift:
        drift_of.setdefault(pair, []).append(note._asdict())
    for listing in page.listings:
        row = {name: value for name, value in listing._asdict().items() if name != "pair"}
        found.append(_answer(listing.pair, {"scan_listings": [row]}, drift_of.pop(listing.pair, [])))
    return found + [_answer(pair, {}, notes) for pair, notes in drift_of.items()]


def _answer(pair: Pair, tables: Mapping[str, Sequence[Row]], notes: Sequence[Row]) -> Answer:
    return {
        "deployment_id": pair.deployment_id or None,
        "scan_id": pair.scan_id or None,
        "tables": tables,
        "drift": notes,
    }


def _with_extra(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "extra": row["extra"] and json.loads(row["extra"])}


def _show(answers: Sequence[Answer]) -> None:
    """Each answer as two tables: its values that aren't null, and its drift."""
    for answer in answers:
        title = f"Scan {answer['deployment_id']}/{answer['scan_id']}" if answer["tables"] else "An entry of no scan"
        cells = [
            {"column": f"{table}[{number}].{column}" if len(rows) > 1 else f"{table}.{column}", "value": _plain(value)}
            for table, rows in answer["tables"].items()
            for number, row in enumerate(rows, start=1)
            for column, value in row.items()
            if value is not None
        ]
        print_table(title, cells)
        print_table("Drift", answer["drift"])
        click.echo()


def _plain(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


@click.command("drift")
@click.option(
    "--since",
    "since_seconds",
    type=Age(),
    metavar="TIME",
    help="Only what was first seen within this time, e.g. 7d.",
)
@click.option(
    "--fail-on-new", is_flag=True, help="Exit 1 if something was first seen within --since, by default a day."
)
@as_json
@common
@click.pass_context
def drift_command(ctx: click.Context, since_seconds: float | None, fail_on_new: bool) -> None:
    """List where answers differ from what is documented: new fields, odd values, contradictions.

    `scan-etl inspect` shows what becomes of the scan that each names as its sample.
    """
    new_seconds = since_seconds or DAY_SECONDS
    with closing(open_database(settings_of(ctx).database.address, create=False, reads_only=True)) as opened_database:
        rows = opened_database.run_here(partial(drift.met, new_seconds=new_seconds))
    shown = [row for row in rows if row["is_new"] or since_seconds is None]
    if wants_json(ctx):
        print_result({"drift": shown, "new": sum(row["is_new"] for row in rows)}, as_json=True)
    else:
        print_table("Drift", [_drift_row(row) for row in shown])
    if fail_on_new and any(row["is_new"] for row in rows):
        ctx.exit(NEW_DRIFT_EXIT)


def _drift_row(row: Mapping[str, Any]) -> dict[str, Any]:
    sample = f"{row['sample_deployment_id']}/{row['sample_scan_id']}"
    names = ("path", "kind", "count", "first_seen_at", "last_seen_at")
    return {**{name: row[name] for name in names}, "sample": sample, "new": "yes" if row["is_new"] else "no"}
