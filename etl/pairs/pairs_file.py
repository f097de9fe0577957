"""Reads pairs files: which scans of which deployments to fetch.

A file is read as a stream, whatever its size. What its lines are is said in `lines`, what arrays are in `arrays`.

    a table     a header with `deployment_id` and `scan_id` among other columns, or two columns of numbers; between
                the columns are commas, semicolons, tabs or `|`
    JSON        a line an object with `deployment_id` and `scan_id` (or `id`, as the search call has it), or a line
                [120, 123]; or one array of those, over as many lines as it likes
    text        lines `120 123`, `120/123`, `120,123`, or addresses with `/deployments/120/scan/123` in them

The names may be spelled `deploymentId` or `Deployment ID` as well. What a file is shows in its first line; where it
doesn't, a name that ends with .csv, .tsv, .json or .jsonl decides. Each may be compressed with gzip, or be UTF-16 with
its mark. `-` is stdin.
Blank lines and lines that begin with `#` pass. A line that names no pair becomes a `BadLine`, and the rest goes on.
"""

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from etl.errors import ConfigError
from etl.model import INT64_MAX, Pair
from etl.pairs.arrays import BrokenArrayError, Elements
from etl.pairs.lines import MAX_LINE_BYTES, Lines, opened, opening, passes, read_blocks

_MAX_PLAIN_COLUMNS = 100  # the pattern of a line takes longer to compile than a few lines take to read
_SHOWN_CHARACTERS = 60
# What holds of a line holds of a CSV record that spans several.
_TOO_LONG = f"longer than {MAX_LINE_BYTES} bytes"
_PACKED_OTHERWISE = "compressed, and not with gzip: unpack it"
# By the end of their names, or by their first bytes.
_NO_TEXT = (
    ((".ods", ".numbers", ".zip"), b"PK\x05\x06", "a spreadsheet or a zip archive: save it as CSV, or unpack it"),
    ((".xlsx", ".xlsm"), b"PK\x03\x04", "an Excel workbook: save it as CSV"),
    ((".xls",), b"\xd0\xcf\x11\xe0", "an Excel workbook: save it as CSV"),
    ((".zst",), b"\x28\xb5\x2f\xfd", _PACKED_OTHERWISE),
    ((".bz2",), b"BZh", _PACKED_OTHERWISE),
    ((".xz",), b"\xfd7zXZ\0", _PACKED_OTHERWISE),
    (
        (".parquet",),
        b"PAR1",
        "a Parquet file: turn it into CSV, as with duckdb -c \"COPY (FROM 'pairs.parquet') TO 'pairs.csv'\"",
    ),
)
_SEPARATOR_LINE = re.compile(rb'(?i)"?sep=[,;\t|]"?')  # a line for Excel, before the header
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*(?:[\[{\]]|\Z)")  # a line [120, 123] is a pair, and begins otherwise
_AFTER_AN_ID = re.compile(rb'(?i)(?:deployment|scan)[ _.-]*id"?\s*([,;\t|])')
_DELIMITER = re.compile(rb"([,;\t|])")
_ADDRESS = re.compile(rb"https?://\S+/deployments/(\d+)/scans?/(\d+)(?:[/?#]\S*)?")


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that names no pair. `line` counts from 1, and is the first one where a record spans several."""

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason}"


class Chunk(NamedTuple):
    """The next pairs and bad lines of a file, in its order. `lines_read` counts from the top of the file."""

    pairs: list[Pair]
    bad_lines: list[BadLine]
    lines_read: int


def read_pairs(path: str, *, chunk_size: int = 10_000) -> Iterator[Chunk]:
    """Yield the pairs of one file, or of stdin for `-`: at most `chunk_size` pairs and bad lines at a time.

    A pair that occurs twice comes twice. The last chunk may be empty: its `lines_read` counts all lines.
    Raises ConfigError if the file can't be read to its end, isn't UTF-8 or text, has a header without the ids, or
    names no pair at all. What was read before it shows has been yielded by then.
    """
    name = "stdin" if path == "-" else path
    pairs = bad_lines = 0
    for chunk in _chunks(path, name, chunk_size):
        pairs += len(chunk.pairs)
        bad_lines += len(chunk.bad_lines)
        yield chunk
    if not pairs:
        unusable = "1 line" if bad_lines == 1 else f"{bad_lines:,} lines"
        found = f"{unusable} could not be used" if bad_lines else "it has no line but comments or a header"
        raise ConfigError(f"{name} names no pair: {found}")


def _chunks(path: str, name: str, chunk_size: int) -> Iterator[Chunk]:
    with opened(path, name) as stream:
        source, found = _content(path, name, read_blocks(stream, name))
        pairs: list[Pair] = []
        bad_lines: list[BadLine] = []
        fault = None
        try:
            for each in found:
                if isinstance(each, list):
                    pairs += each
                else:
                    bad_lines.append(each)
                while len(pairs) + len(bad_lines) >= chunk_size:
                    room = chunk_size - len(bad_lines)
                    yield Chunk(pairs[:room], bad_lines, source.taken)
                    pairs, bad_lines = pairs[room:], []
        except ConfigError as error:
            fault = error
        yield Chunk(pairs, bad_lines, source.taken)
        if fault:
            raise fault


_PairsAndBadLines = Iterator[list[Pair] | BadLine]


def _content(path: str, name: str, blocks: Iterator[bytes]) -> tuple[Lines | Elements, _PairsAndBadLines]:
    start, blocks = opening(blocks)
    for endings, magic, what in _NO_TEXT:
        if path.lower().endswith(endings) or start.startswith(magic):
            raise ConfigError(f"{name} is {what}")
    if _ARRAY.match(start):
        elements = Elements(blocks, name)
        return elements, _pairs_of_elements(elements, name)
    lines = Lines(blocks, name)
    return lines, _pairs_of_lines(lines, name, path)


def _pairs_of_elements(elements: Elements, name: str) -> _PairsAndBadLines:
    try:
        for line, element in elements:
            pair = _json_pair(element.encode())
            yield BadLine(name, line, pair) if isinstance(pair, str) else [pair]
    except BrokenArrayError as error:
        yield BadLine(name, elements.line, f"not a JSON array ({error}): nothing after this was read")


class _Columns(NamedTuple):
    """How many columns there are, and the places of the two that count, from 0."""

    width: int
    deployment: int
    scan: int


class _Form(NamedTuple):
    """How to read lines. `parse` returns the pair of a line, or the reason why there is none. Where a record
    spans several lines, it takes the others.
    """

    parse: Callable[[bytes, Lines], Pair | str]
    columns: _Columns | None = None
    separators: bytes = b""


def _pairs_of_lines(lines: Lines, name: str, path: str) -> _PairsAndBadLines:
    form = _form(path, name, lines)
    while True:
        if form.columns and form.columns.width <= _MAX_PLAIN_COLUMNS:
            yield from _plain_pairs(lines, form.columns, form.separators)
        if not lines.first():
            return
        for line in lines:
            if not passes(line):
                number = lines.taken
                pair = form.parse(line, lines) if len(line) <= MAX_LINE_BYTES else _TOO_LONG
                yield BadLine(name, number, pair) if isinstance(pair, str) else [pair]


def _form(path: str, name: str, lines: Lines) -> _Form:
    if _SEPARATOR_LINE.fullmatch(lines.first()):
        lines.skip(1)
    first, ending = lines.first(), path.lower().removesuffix(".gz")
    # Behind the first of two ids in a header there is always a delimiter.
    delimiter = _AFTER_AN_ID.search(first) or _DELIMITER.search(first)
    if first.lstrip().startswith((b"{", b"[")):
        return _Form(_json_line)
    if ending.endswith((".csv", ".tsv")) or (delimiter and (path == "-" or delimiter.re is _AFTER_AN_ID)):
        return _table(lines, name, delimiter[1] if delimiter else b",")
    if ending.endswith((".jsonl", ".json")):
        return _Form(_json_line)
    return _Form(_text_pair, _Columns(2, 0, 1), b" \t,/")


def _table(lines: Lines, name: str, delimiter: bytes) -> _Form:
    columns = _columns(lines, name, delimiter)
    return _Form(partial(_csv_pair, columns, delimiter), columns, delimiter)


def _text_pair(line: bytes, _: Lines) -> Pair | str:
    address = _ADDRESS.fullmatch(line.strip())
    fields = address.groups() if address else re.split(rb"\s*[,/]\s*|\s+", line.strip())
    if len(fields) != len(Pair._fields):
        return f"{_shown(line.strip())} is not a deployment_id and a scan_id"
    return _pair(fields[0], fields[1])


# A float as its text: it may have more digits than a number keeps.
_decode_json = msgspec.json.Decoder(dict[str, Any] | list[Any], float_hook=str).decode


def _json_line(line: bytes, _: Lines) -> Pair | str:
    return _json_pair(line)


def _json_pair(text: bytes) -> Pair | str:
    try:
        found = _decode_json(text)
    except (msgspec.DecodeError, RecursionError) as error:
        return f"not a JSON object or array ({error})"
    if isinstance(found, dict):
        named = {_spelled(name): value for name, value in found.items()}
        found = [named.get("deploymentid", ""), named.get("scanid", named.get("id", ""))]
    if len(found) != len(Pair._fields):
        return f"an array of {len(found)} values instead of 2"
    deployment, scan = (x.encode() if isinstance(x, str) else msgspec.json.encode(x) for x in found)
    return _pair(deployment, scan)


@lru_cache(100)
def _spelled(name: str) -> str:
    """The same for `deployment_id`, `deploymentId`, `Deployment ID` and `deployment-id`."""
    return re.sub(r"[\W_]", "", name).lower()


def _csv_pair(columns: _Columns, delimiter: bytes, line: bytes, lines: Lines) -> Pair | str:
    try:
        fields, more = _record(line, lines.ahead(), delimiter)
    except csv.Error as error:
        return f"not CSV ({error})"
    lines.skip(more)
    if len(fields) != columns.width:
        return f"{len(fields)} column{'s' * (len(fields) > 1)} instead of {columns.width}"
    return _pair(fields[columns.deployment], fields[columns.scan])


def _columns(lines: Lines, name: str, delimiter: bytes) -> _Columns:
    """Take the header, if there is one."""
    first = lines.first()
    try:
        if len(first) > MAX_LINE_BYTES:
            raise csv.Error(_TOO_LONG)
        fields, more = _record(first, islice(lines.ahead(), 1, None), delimiter)
    except csv.Error as error:
        raise ConfigError(f"{name}:{lines.taken + 1}: not CSV ({error}): fix the header") from error
    names = [_spelled(field.decode()) for field in fields]
    if names.count("deploymentid") == names.count("scanid") == 1:
        lines.skip(1 + more)
        return _Columns(len(names), names.index("deploymentid"), names.index("scanid"))
    if first and not any(re.match(rb"\s*[+-]?\d", field) for field in fields):
        raise ConfigError(
            f"{name}:{lines.taken + 1}: the header doesn't name deployment_id and scan_id, once each: "
            "add them, or give two columns of numbers without a header"
        )
    return _Columns(2, 0, 1)


def _record(line: bytes, ahead: Iterator[bytes], delimiter: bytes) -> tuple[list[bytes], int]:
    """Return the fields of the record that begins with `line`, and how many lines ahead belong to it."""
    if b'"' not in line:
        return line.split(delimiter), 0
    reader = csv.reader(_within_limit(line, ahead), delimiter=delimiter.decode(), strict=True)
    return [field.encode() for field in next(reader)], reader.line_num - 1


def _within_limit(line: bytes, ahead: Iterator[bytes]) -> Iterator[str]:
    yield line.decode()
    left_bytes = MAX_LINE_BYTES - len(line)
    for more in ahead:
        left_bytes -= len(more)
        if left_bytes < 0:
            return
        yield more.decode()


_decode_pairs = msgspec.json.Decoder(list[Pair]).decode


def _plain_pairs(lines: Lines, columns: _Columns, separators: bytes) -> Iterator[list[Pair]]:
    """Take the blocks that are plain. Turned into JSON, they become pairs 5 times as fast as line by line."""
    to_line_feeds = bytes.maketrans(separators, b"\n" * len(separators))
    for block in lines.plain_blocks(_odd_line(columns, separators)):
        cells = block.translate(to_line_feeds).split(b"\n")
        deployments, scans = cells[columns.deployment :: columns.width], cells[columns.scan :: columns.width]
        yield _decode_pairs(b"[[%b]]" % b"],[".join(map(b",".join, zip(deployments, scans, strict=True))))


def _odd_line(columns: _Columns, separators: bytes) -> re.Pattern[bytes]:
    """Finds a line feed before a line that isn't plain: one with quotes, a comment, or without ids of 1 to 18 digits,
    which always fit into 63 bits.

    No possessive quantifiers: Python 3.11.0 to 3.11.4 misjudge them beside a lookahead (cpython 100061, 106052).
    """
    cells = [rb'[^"\n%b]*' % separators] * columns.width
    cells[columns.deployment] = cells[columns.scan] = rb"[1-9]\d{0,17}"
    return re.compile(rb"\n(?!(?!\s*#)%b(?:\n|\Z))" % (rb"[%b]" % separators).join(cells))


def _pair(deployment: bytes, scan: bytes) -> Pair | str:
    deployment_id = _id("deployment_id", deployment)
    scan_id = _id("scan_id", scan)
    if isinstance(deployment_id, str):
        return deployment_id
    return scan_id if isinstance(scan_id, str) else Pair(deployment_id, scan_id)


def _id(name: str, value: bytes) -> int | str:
    text = value.strip()
    if not text:
        return f"{name} is missing"
    whole, _, zeros = text.partition(b".")  # pandas and spreadsheets write 120.0 where a column has a gap
    # 1.000 is a thousand in half of the world's spreadsheets.
    if not whole.isdigit() or zeros not in (b"", b"0", b"00") or text.endswith(b"."):
        return f"{name} {_shown(text)} is not a positive integer"
    digits = whole.lstrip(b"0")
    if not digits:
        return f"{name} 0 names no {name.removesuffix('_id')}"
    if len(digits) > len(str(INT64_MAX)) or int(digits) > INT64_MAX:
        return f"{name} {_shown(text)} is greater than {INT64_MAX}"
    return int(digits)


def _shown(value: bytes) -> str:
    text = value.decode(errors="replace")
    return repr(text) if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]!r}..."
