"""What pairs files are read as: all their forms, and what becomes of wrong lines and wrong files."""

import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from command import Command
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peak_memory import peak_bytes

from etl.errors import ConfigError
from etl.model import INT64_MAX, Pair
from etl.pairs.lines import MAX_LINE_BYTES
from etl.pairs.pairs_file import BadLine, read_pairs

ROOT = Path(__file__).parents[2]
BLOCK_BYTES = 65_536
packed = partial(gzip.compress, mtime=0)
"""Without the time of day, or a test would have another name in each process."""
PACKED, PACKED_NOTHING = packed(b"1 2\n"), packed(b"")


def read(path: Path | str, *, chunk_size: int = 10_000) -> tuple[list[Pair], list[BadLine]]:
    chunks = list(read_pairs(str(path), chunk_size=chunk_size))
    return [pair for chunk in chunks for pair in chunk.pairs], [bad for chunk in chunks for bad in chunk.bad_lines]


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for tests that write many files, one after the other."""
    return tmp_path_factory.mktemp("pairs")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bare.csv", "120,123\n120,124\n"),
        ("no_last_line_feed.csv", "120,123\n120,124"),
        ("header.csv", "deployment_id,scan_id\n120,123\n120,124\n"),
        ("order.csv", "title,SCAN_ID, Deployment_Id ,n\na,123,120,1\nb,124,120,2\n"),
        ("quoted.csv", '"deployment_id","scan_id","title"\n"120","123","a, ""b"""\n120,"124",c\n'),
        ("line_breaks.csv", 'title,deployment_id,scan_id\n"a\n\n# b, ""c"",9,9\nd",120,123\n"e",120,124\n'),
        ("line_break_in_header.csv", 'deployment_id,"a\nb",scan_id\n120,c,123\n120,d,124\n'),
        ("bare.tsv", "120\t123\n120\t124\n"),
        ("header.tsv", 'scan_id\tnote\tdeployment_id\n123\t"a\tb"\t120\n124\t\t120\n'),
        (
            "objects.jsonl",
            '{"deployment_id":120,"scan_id":123}\n{"scan_id":"124","x":[1],"deployment_id":" 120 "}\n',
        ),
        ("search.jsonl", '{"deployment_id":"120","id":"123"}\n{"deployment_id":120,"id":9,"scan_id":124}\n'),
        ("arrays.jsonl", '[120,123]\n ["120", "124"]\n'),
        ("blanks.txt", "120 123\n  120 \t 124  \n"),
        ("slash.txt", "120/123\n120 / 124\n"),
        ("comma.txt", "120,123\n120, 124\n"),
        ("tab", "120\t123\n0120 00124\n"),
        ("pairs.CSV", "deployment_id,scan_id\n120,123\n120,124\n"),
        ("semicolons.csv", '"deployment_id";"title";"scan_id"\n"120";"a, b";"123"\n"120";"c|\td";"124"\n'),
        ("pipes.csv", "deployment_id | scan_id\n120 | 123\n120 | 124\n"),
        ("tabs.csv", "title, if any\tdeployment_id\tscan_id\na, b\t120\t123\n\t120\t124\n"),
        ("commas.tsv", "deployment_id,scan_id\n120,123\n120,124\n"),
        ("bare_semicolons.csv", "120;123\n120;124\n"),
        ("a_table.txt", "deployment_id|scan_id\n120|123\n120|124\n"),
        ("a_table.json", "scan_id;deployment_id\n123;120\n124;120\n"),
        ("objects.csv", '{"deployment_id":120,"scan_id":123}\n{"deployment_id":120,"scan_id":124}\n'),
        ("arrays", "[120,123]\n[120,124]\n"),
        ("camels.csv", "deploymentId,scanId\n120,123\n120,124\n"),
        ("words.csv", 'Deployment ID,"Scan ID",Id\n120,123,1\n120,124,2\n'),
        ("hyphens.tsv", "SCAN-ID\tdeployment-id\n123\t120\n124\t120\n"),
        ("camels.jsonl", '{"deploymentId":120,"scanId":123}\n{"id":9,"Scan ID":124,"deployment-id":"120"}\n'),
        ("floats.csv", "deployment_id,scan_id\n120.0,123.0\n120.00,124\n"),
        ("floats.txt", "120.0 123\n120/124.0\n"),
        ("floats.jsonl", '[120.0,123]\n{"deployment_id":"120.0","id":124.0}\n'),
        (
            "addresses.txt",
            "https://semgrep.dev/api/v1/deployments/120/scan/123\nhttp://x/deployments/120/scans/124/logs?a=1#b\n",
        ),
    ],
)
@pytest.mark.parametrize("wrap", ["plain", "gz", "gz_without_the_name", "crlf", "bom", "comments"])
def test_every_form_is_read(tmp_path: Path, name: str, content: str, wrap: str) -> None:
    """Each form gives the same pairs, compressed or not, with a BOM, with CRLF, among comments and blank lines."""
    data = content.encode()
    if wrap == "crlf":
        data = data.replace(b"\n", b"\r\n")
    elif wrap == "bom":
        data = b"\xef\xbb\xbf" + data
    elif wrap == "comments":
        data = b'# 1,2 "\n\n  # [3, 4]\n \t\n' + data + b"\n\n# 5/6\n"
    elif wrap.startswith("gz"):
        data = gzip.compress(data)
    path = written(tmp_path / (f"{name}.gz" if wrap == "gz" else name), data)

    assert read(path) == ([Pair(120, 123), Pair(120, 124)], [])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("abc", "scan_id 'abc' is not a positive integer"),
        ("-3", "scan_id '-3' is not a positive integer"),
        ("+5", "scan_id '+5' is not a positive integer"),
        ("1.5", "scan_id '1.5' is not a positive integer"),
        ("1.", "scan_id '1.' is not a positive integer"),
        (".0", "scan_id '.0' is not a positive integer"),
        ("1.0.0", "scan_id '1.0.0' is not a positive integer"),
        ("1e2", "scan_id '1e2' is not a positive integer"),
        ("0.0", "scan_id 0 names no scan"),
        ("1_000", "scan_id '1_000' is not a positive integer"),
        ("0x7b", "scan_id '0x7b' is not a positive integer"),
        ("1२3", "scan_id '1२3' is not a positive integer"),
        ("१२३", "scan_id '१२३' is not a positive integer"),
        ("\x1b[2J", r"scan_id '\x1b[2J' is not a positive integer"),
        ("x" * 61, f"scan_id '{'x' * 60}'... is not a positive integer"),
        ("0", "scan_id 0 names no scan"),
        ("00", "scan_id 0 names no scan"),
        (str(INT64_MAX + 1), f"scan_id '{INT64_MAX + 1}' is greater than {INT64_MAX}"),
        ("9" * 5000, f"scan_id '{'9' * 60}'... is greater than {INT64_MAX}"),
    ],
)
@pytest.mark.parametrize("form", ["120,{}", "120/{}", '["120","{}"]', '{{"deployment_id":120,"scan_id":"{}"}}'])
def test_an_id_is_a_decimal_integer_from_1_to_63_bits(tmp_path: Path, value: str, reason: str, form: str) -> None:
    """Anything else is a bad line that says what is wrong with the value, cut to 60 characters."""
    ending = {"1": ".csv", "[": ".jsonl", "{": ".jsonl"}[form[0]] if "/" not in form else ".txt"
    line = form.format(json.dumps(value, ensure_ascii=False)[1:-1] if ending == ".jsonl" else value)
    path = written(tmp_path / f"pairs{ending}", f"120,1\n{line}\n" if ending != ".jsonl" else f"[120,1]\n{line}\n")

    assert read(path) == ([Pair(120, 1)], [BadLine(str(path), 2, reason)])


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("a.csv", "0,1", "deployment_id 0 names no deployment"),
        ("a.csv", ",1", "deployment_id is missing"),
        ("a.csv", "1,", "scan_id is missing"),
        ("a.csv", "1", "1 columns instead of 2"),
        ("a.csv", "1,2,3", "3 columns instead of 2"),
        ("a.csv", '"1"x,2', "not CSV (',' expected after '\"')"),
        ("a.csv", '1,"2', "not CSV (unexpected end of data)"),
        ("a.csv", "1\0,2", r"deployment_id '1\x00' is not a positive integer"),
        ("a.txt", "1", "'1' is not a deployment_id and a scan_id"),
        ("a.txt", "1 2 3", "'1 2 3' is not a deployment_id and a scan_id"),
        ("a.txt", "1//2", "'1//2' is not a deployment_id and a scan_id"),
        ("a.txt", "1/", "scan_id is missing"),
        (
            "a.txt",
            "https://x/deployments/acme/scan/1",
            "'https://x/deployments/acme/scan/1' is not a deployment_id and",
        ),
        ("a.txt", "https://x/deployments/1/scan/1x", "'https://x/deployments/1/scan/1x' is not a deployment_id and a"),
        ("a.jsonl", "[1]", "an array of 1 values instead of 2"),
        ("a.jsonl", '{"deployment_id":1}', "scan_id is missing"),
        ("a.jsonl", '{"scan_id":1}', "deployment_id is missing"),
        ("a.jsonl", "[1,2.5]", "scan_id '2.5' is not a positive integer"),
        ("a.jsonl", "[1,9223372036854775808.0]", "scan_id '9223372036854775808.0' is greater than"),
        ("a.jsonl", "[1,true]", "scan_id 'true' is not a positive integer"),
        ("a.jsonl", "[1,null]", "scan_id 'null' is not a positive integer"),
        ("a.jsonl", "[1,[2]]", "scan_id '[2]' is not a positive integer"),
        ("a.jsonl", "[1,2", "not a JSON object or array (Input data was truncated)"),
        ("a.jsonl", "12", "not a JSON object or array (Expected `object | array`, got `int`)"),
        ("a.jsonl", "[" * 60_000, "not a JSON object or array (maximum recursion depth exceeded"),
    ],
)
def test_a_line_that_names_no_pair_is_named(tmp_path: Path, name: str, line: str, reason: str) -> None:
    """The bad line comes with its number and the reason, and the lines around it are read."""
    good = "[7,8]" if name.endswith(".jsonl") else "7,8"
    pairs, bad_lines = read(written(tmp_path / name, f"{good}\n\n{line}\n{good}\n"))

    assert pairs == [Pair(7, 8), Pair(7, 8)]
    assert [bad.line for bad in bad_lines] == [3]
    assert bad_lines[0].reason.startswith(reason)


def test_a_bad_line_prints_as_file_number_reason(tmp_path: Path) -> None:
    """Its text is what an editor can jump to."""
    path = written(tmp_path / "pairs.csv", "120,123\n120,abc\n")

    assert [str(bad) for bad in read(path)[1]] == [f"{path}:2: scan_id 'abc' is not a positive integer"]


def test_a_quote_left_open_costs_its_own_line_only(tmp_path: Path) -> None:
    """The lines after it are read again as lines, even past the end of a block."""
    good = [f"120,{n}" for n in range(1, 20_001)]
    path = written(tmp_path / "pairs.csv", "\n".join([*good, '120,"7', *good]))
    pairs, bad_lines = read(path)

    assert pairs == [Pair(120, n) for n in range(1, 20_001)] * 2
    assert [(bad.line, bad.reason) for bad in bad_lines] == [(20_001, "not CSV (unexpected end of data)")]


def test_a_bad_record_of_several_lines_has_the_number_of_the_first(tmp_path: Path) -> None:
    """And the numbers after it are right."""
    path = written(tmp_path / "pairs.csv", 'deployment_id,t,scan_id\n1,"a\nb\nc",x\n1,b,2\n1,c,y\n')
    pairs, bad_lines = read(path)

    assert pairs == [Pair(1, 2)]
    assert [bad.line for bad in bad_lines] == [2, 6]


def test_a_row_with_another_number_of_columns_than_the_header_is_bad(tmp_path: Path) -> None:
    """A comma too many moves ids into other columns: better no pair than a wrong one."""
    path = written(tmp_path / "pairs.csv", "t,repo,deployment_id,scan_id\na,9,120,1\na,b,9,120,1\nc,9,120\n")
    pairs, bad_lines = read(path)

    assert pairs == [Pair(120, 1)]
    assert [bad.reason for bad in bad_lines] == ["5 columns instead of 4", "3 columns instead of 4"]


def test_a_header_may_have_thousands_of_columns(tmp_path: Path) -> None:
    """Its width costs no more than its lines do."""
    filler = ",x" * 5_000
    path = written(tmp_path / "pairs.csv", f"scan_id,deployment_id{filler}\n" + f"123,120{filler}\n" * 20)

    assert read(path) == ([Pair(120, 123)] * 20, [])


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".txt"])
@pytest.mark.parametrize("filler", [b"9", b" ", "é".encode()], ids=["digits", "blanks", "two_byte_characters"])
@pytest.mark.parametrize("more", [1, BLOCK_BYTES, 5 * BLOCK_BYTES])
def test_a_line_past_the_limit_is_bad(tmp_path: Path, ending: str, filler: bytes, more: int) -> None:
    """However long, and wherever it is cut, it is one bad line, and its neighbours are read."""
    good = b"[1,2]" if ending == ".jsonl" else b"1\t2" if ending != ".csv" else b"1,2"
    long = good + filler * ((MAX_LINE_BYTES + more) // len(filler)) + good
    path = written(tmp_path / f"pairs{ending}", b"\n".join([good, long, good, long]))
    pairs, bad_lines = read(path)

    assert pairs == [Pair(1, 2), Pair(1, 2)]
    assert [(bad.line, bad.reason) for bad in bad_lines] == [(n, "longer than 65536 bytes") for n in (2, 4)]


def test_a_line_of_just_the_limit_is_read(tmp_path: Path) -> None:
    """The limit is the longest line that is read, without its line end and the file's BOM."""
    line = b"1,2".ljust(MAX_LINE_BYTES)
    path = written(tmp_path / "pairs.csv", b"\xef\xbb\xbf" + line + b"\r\n" + line + b" \r\n" + line + b"\r")
    pairs, bad_lines = read(path)

    assert pairs == [Pair(1, 2), Pair(1, 2)]
    assert [bad.line for bad in bad_lines] == [2]


@pytest.mark.parametrize(
    ("line", "count"),
    [
        (b"120,123\n", 100_000),
        (b'120,"123"\n', 50_000),
        (b"120,x\n", 50_000),
        (b'"\n', 50_000),
        (b"x", 30_000_000),
    ],
    ids=["plain", "quoted", "bad", "open_quotes", "endless"],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, line: bytes, count: int) -> None:
    """A few blocks and one chunk are in memory, where the whole file would take 10 MB and more."""
    path = written(tmp_path / "pairs.csv.gz", gzip.compress(b"1,2\n" + line * count, compresslevel=1))
    lines_read: list[int] = []
    peak = peak_bytes(lambda: lines_read.extend(c.lines_read for c in read_pairs(str(path), chunk_size=500)))

    assert peak < 4_000_000
    assert lines_read[-1] == 1 + (count if line.endswith(b"\n") else 1)


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 10, 1000])
def test_chunks_are_never_larger_than_asked(tmp_path: Path, chunk_size: int) -> None:
    """Chunks hold what was asked for, the last one the rest, and count the lines read so far."""
    lines = [f"120,{n}" if n % 3 else "bad,1" for n in range(1, 31)]
    path = written(tmp_path / "pairs.csv", "# comment\n" + "\n".join(lines) + "\n\n")
    chunks = list(read_pairs(str(path), chunk_size=chunk_size))
    sizes = [len(chunk.pairs) + len(chunk.bad_lines) for chunk in chunks]

    assert sizes == [chunk_size] * (30 // chunk_size) + [30 % chunk_size]
    assert [pair.scan_id for chunk in chunks for pair in chunk.pairs] == [n for n in range(1, 31) if n % 3]
    assert [bad.line for chunk in chunks for bad in chunk.bad_lines] == [n + 1 for n in range(1, 31) if not n % 3]
    assert chunks[-1].lines_read == 32


@pytest.mark.parametrize("content", [b"", b"\n", b"# nothing\n", b"\xef\xbb\xbf", PACKED_NOTHING])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".jsonl", ".txt"])
def test_a_file_without_lines_is_refused(tmp_path: Path, content: bytes, ending: str) -> None:
    """Blank lines and comments name no pair: something went wrong where the file was written."""
    path = written(tmp_path / f"pairs{ending}", content)

    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value) == f"{path} names no pair: it has no line but comments or a header"


@pytest.mark.parametrize(
    ("name", "content", "count", "found"),
    [
        ("a.csv", "deployment_id,scan_id\n", 0, "it has no line but comments or a header"),
        ("a.csv", "deployment_id;scan_id", 0, "it has no line but comments or a header"),
        ("a.json", "[]\n", 0, "it has no line but comments or a header"),
        ("a.csv", "deployment_id,scan_id\n120,x\n", 1, "1 line could not be used"),
        ("a.txt", "120 x\n" * 2_000, 2_000, "2,000 lines could not be used"),
        ("a.json", '[{"deployment_id":1},\n[1],\n3]', 3, "3 lines could not be used"),
    ],
)
def test_a_file_of_which_nothing_can_be_used_is_refused(
    tmp_path: Path, name: str, content: str, count: int, found: str
) -> None:
    """All bad lines come first, and then the error says how many they were."""
    path = written(tmp_path / name, content)
    bad_lines: list[BadLine] = []

    with pytest.raises(ConfigError) as caught:
        bad_lines.extend(bad for chunk in read_pairs(str(path), chunk_size=100) for bad in chunk.bad_lines)
    assert str(caught.value) == f"{path} names no pair: {found}"
    assert len(bad_lines) == count


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            b"id,scan\n1,2\n",
            ":1: the header doesn't name deployment_id and scan_id, once each: add them",
        ),
        ("a.csv", b"deployment_id:scan_id\n1:2\n", ":1: the header doesn't name"),
        ("a.csv", b"scanId,deployment_id,Scan ID\n1,2,3\n", ":1: the header doesn't name"),
        ("a.csv", b"#\nscan_id,deployment_id,scan_id\n1,2,3\n", ":2: the header doesn't name"),
        ("a.csv", b'"deployment_id,scan_id\n1,2\n', ":1: not CSV (unexpected end of data): fix the header"),
        ("a.csv", b"deployment_id,scan_id" + b",x" * 40_000, ":1: not CSV (longer than 65536 bytes)"),
        ("a.csv", b"1,2\n1,3\n1,\xff\n", ":3: not UTF-8 (invalid start byte): save it as UTF-8"),
        ("a.txt", "1 2\n".encode("utf-16"), ":1: not UTF-8"),
        ("a.jsonl", b"[1,2]\n" * 20_000 + b'["\xe4",2]', ":20001: not UTF-8"),
        ("a.json", b'[{"a":1},\n["\xe4",2]]', ":2: not UTF-8 (invalid continuation byte): save it as UTF-8"),
        ("a.csv", b"PK\x03\x04\x14\x00", " is an Excel workbook: save it as CSV"),
        ("a.xlsx", b"", " is an Excel workbook: save it as CSV"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", " is an Excel workbook: save it as CSV"),
        ("a.XLS", b"1,2\n", " is an Excel workbook: save it as CSV"),
        ("a", b"PAR1\x15\x04", " is a Parquet file: turn it into CSV, as with duckdb -c"),
        ("a.csv", packed(b"PAR1\x15\x04"), " is a Parquet file: turn it into CSV"),
        ("a.parquet", b"", " is a Parquet file: turn it into CSV"),
        ("a.txt", b"\x1f\x8b", " is gzip data that is cut off or damaged: copy it again"),
        ("a.txt", b"\x1f", " is gzip data that is cut off or damaged"),
        ("a.txt", PACKED + b"x", " is gzip data that is cut off or damaged"),
        ("a.txt", PACKED[:-8] + bytes(8), " is gzip data that is cut off or damaged"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """The error is one sentence that names the file, the line if there is one, and what to do."""
    path = written(tmp_path / name, content)

    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}{message}")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.csv", "No such file or directory"),
        ("", "Is a directory"),
        ("file.txt/x", "Not a directory"),
        ("nul\0.csv", "embedded null byte"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    """The error names the file and says why."""
    written(tmp_path / "file.txt", "1 2\n")
    path = f"{tmp_path}/{name}"

    with pytest.raises(ConfigError) as caught:
        read(path)
    assert str(caught.value) == f"{path} can't be read ({reason}): check its path and its permissions"


def test_what_stands_before_a_break_in_gzip_data_is_yielded(tmp_path: Path) -> None:
    """All whole lines come before the error, but not the one that is cut in two, for it may lack digits."""
    lines = [f"120,{n * 7919 % 1_000_003}" for n in range(1, 50_001)]
    path = written(tmp_path / "pairs.csv.gz", gzip.compress("\n".join(lines).encode())[:-5_000])
    pairs: list[Pair] = []
    with pytest.raises(ConfigError, match="cut off or damaged"):
        pairs.extend(pair for chunk in read_pairs(str(path)) for pair in chunk.pairs)

    assert len(pairs) > 40_000
    assert [f"{pair.deployment_id},{pair.scan_id}" for pair in pairs] == lines[: len(pairs)]


READ_STDIN = """
import json
from etl.errors import ConfigError
from etl.pairs.pairs_file import read_pairs
try:
    for chunk in read_pairs("-"):
        print(json.dumps([chunk.pairs, [str(bad) for bad in chunk.bad_lines]]))
except ConfigError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.parametrize(
    ("content", "pairs"),
    [
        ("deployment_id,scan_id\n1,2\n", [[1, 2]]),
        ("\n# a\tcomment\n\n'x',scan_id,deployment_id\nb\t,2,1\n", [[1, 2]]),
        ("1,2\n", [[1, 2]]),
        ("scan_id\tdeployment_id\tn,m\n2\t1\tx,y\n", [[1, 2]]),
        ("1\t2\n", [[1, 2]]),
        ("1 2\n3/4\n", [[1, 2], [3, 4]]),
        ("[1,2]\n", [[1, 2]]),
        ('\n {"deployment_id":1,"scan_id":2}\n', [[1, 2]]),
        ("\ufeffdeployment_id;scan_id\r\n1;2\r\n", [[1, 2]]),
        ("scanId|deploymentId\n2|1\n", [[1, 2]]),
        ("1;2\n", [[1, 2]]),
        ("[[1,2]]", [[1, 2]]),
        ('\n[\n  {\n    "deploymentId": 1,\n    "scanId": 2\n  }\n]\n', [[1, 2]]),
        ("http://x/deployments/1/scan/2\n", [[1, 2]]),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_the_form_of_stdin_shows_in_its_first_line(content: str, pairs: list[list[int]], compressed: bool) -> None:
    """Blank lines and comments don't count; gzip is undone first."""
    data = gzip.compress(content.encode()) if compressed else content.encode()
    done = subprocess.run([sys.executable, "-c", READ_STDIN], input=data, capture_output=True, check=True, cwd=ROOT)

    assert json.loads(done.stdout) == [pairs, []]


def test_stdin_that_comes_byte_by_byte_is_read() -> None:
    """A pipe that hands over a single byte first is still known as gzip, and bad lines are said to be stdin's."""
    with subprocess.Popen(
        [sys.executable, "-c", READ_STDIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, bufsize=0
    ) as process:
        assert process.stdin
        for byte in gzip.compress(b"1 2\n3 x\n"):
            process.stdin.write(bytes([byte]))
        out, _ = process.communicate()

    assert json.loads(out) == [[[1, 2]], ["stdin:2: scan_id 'x' is not a positive integer"]]


def test_an_empty_stdin_is_refused() -> None:
    """What should have filled it has failed, or found nothing."""
    done = subprocess.run([sys.executable, "-c", READ_STDIN], input=b"", capture_output=True, check=True, cwd=ROOT)

    assert json.loads(done.stdout.splitlines()[-1]) == "stdin names no pair: it has no line but comments or a header"


def test_a_closed_stdin_is_refused() -> None:
    """A process without stdin gets an error, no traceback."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" <&-', sys.executable, READ_STDIN],
        capture_output=True,
        check=True,
        cwd=ROOT,
    )

    assert json.loads(done.stdout) == "stdin can't be read (it is closed): check its path and its permissions"


def test_stdin_is_left_open() -> None:
    """Who hands over stdin may go on with it."""

    @click.command()
    def command() -> None:
        click.echo(f"{read('-')} {sys.stdin.closed}")

    result = CliRunner().invoke(command, input="1 2\n")

    assert result.output == f"{([Pair(1, 2)], [])} False\n"


def as_csv(pairs: list[Pair]) -> str:
    return "".join(f"{pair.deployment_id},{pair.scan_id}\n" for pair in pairs)


def as_csv_with_header(pairs: list[Pair]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(["scan_id", "title", "deployment_id"])
    writer.writerows([pair.scan_id, 'fix: "a,\n#b"\r\n', pair.deployment_id] for pair in pairs)
    return text.getvalue()


def as_tsv(pairs: list[Pair]) -> str:
    return "deployment_id\tscan_id\tx\n" + "".join(f"{p.deployment_id}\t{p.scan_id}\t\n" for p in pairs)


def as_objects(pairs: list[Pair]) -> str:
    return "".join(json.dumps(pair._asdict()) + "\n" for pair in pairs)


def as_arrays(pairs: list[Pair]) -> str:
    return "".join(json.dumps([str(number) for number in pair]) + "\n" for pair in pairs)


def as_european_csv(pairs: list[Pair]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, delimiter=";")
    writer.writerows([["Scan ID", "a,b", "Deployment ID"], *([p.scan_id, "1,5", p.deployment_id] for p in pairs)])
    return "\ufeff" + text.getvalue()


def as_array(pairs: list[Pair]) -> str:
    return json.dumps(pairs)


def as_pretty_array(pairs: list[Pair]) -> str:
    return json.dumps(
        [{"scanId": p.scan_id, "deploymentId": p.deployment_id, "x": ["[{", {}]} for p in pairs], indent=2
    )


def as_text(pairs: list[Pair]) -> str:
    return "\n".join(f"{pair.deployment_id}{' /,'[pair.scan_id % 3]}{pair.scan_id}" for pair in pairs)


WRITERS = [
    (as_csv, ".csv"),
    (as_csv_with_header, ".csv"),
    (as_tsv, ".tsv"),
    (as_objects, ".jsonl"),
    (as_arrays, ".jsonl"),
    (as_european_csv, ".csv"),
    (as_array, ".json"),
    (as_pretty_array, ".jsonl"),
    (as_text, ".txt"),
]
IDS = st.integers(1, INT64_MAX) | st.integers(1, 99)


@settings(max_examples=150)
@given(
    pairs=st.lists(st.builds(Pair, IDS, IDS), min_size=1),
    writer=st.sampled_from(WRITERS),
    compressed=st.booleans(),
    chunk_size=st.integers(1, 5),
)
def test_pairs_written_in_any_form_are_read_back(
    folder: Path,
    pairs: list[Pair],
    writer: tuple[Callable[[list[Pair]], str], str],
    compressed: bool,
    chunk_size: int,
) -> None:
    """Whatever the pairs, none is lost, added or changed, and the order stays."""
    write, ending = writer
    data = write(pairs).encode()
    path = written(folder / f"pairs{ending}", gzip.compress(data) if compressed else data)

    assert read(path, chunk_size=chunk_size) == (pairs, [])


CELLS = st.sampled_from(
    ["1", "23", "07", "0", "-1", "#", "#4", " #", " 5", "6 ", "x", "", "7/8", "9" * 18, "9" * 20, "\r"]
)
FORMS = [
    (".csv", "", ",", "1,2"),
    (".csv", "title,scan_id,n,deployment_id\n", ",", "x,2,,1"),
    (".tsv", "scan_id\tdeployment_id\tn\n", "\t", "2\t1\t"),
    (".txt", "", " ", "1 2"),
    (".txt", "", "/", "1/2"),
]


@example(form=FORMS[1], changes=[(1, [], 3)], plain_lines=22_000)
@example(form=FORMS[1], changes=[(0, ["#"], 1)], plain_lines=22_000)
@example(form=FORMS[0], changes=[(1, ["9" * 20], 1)], plain_lines=22_000)
@settings(max_examples=60)
@given(
    form=st.sampled_from(FORMS),
    changes=st.lists(
        st.tuples(st.integers(0, 3), st.lists(CELLS, max_size=2), st.integers(1, 4)), min_size=1, max_size=4
    ),
    plain_lines=st.sampled_from([1, 22_000]),
)
def test_a_line_is_read_alike_alone_and_among_others(
    folder: Path, form: tuple[str, str, str, str], changes: list[tuple[int, list[str], int]], plain_lines: int
) -> None:
    """The quick way for blocks of plain lines finds what the way for single lines finds."""
    ending, header, separator, plain = form
    cells = plain.split(separator)
    lines = [separator.join([*cells[:at], *new, *cells[at + old :]]) for at, new, old in changes]
    alone = [read(written(folder / f"alone{ending}", f"{header}{plain}\n{line}")) for line in lines]
    content = [plain] * plain_lines + lines + [plain] * plain_lines
    pairs, bad_lines = read(written(folder / f"all{ending}", header + "\n".join(content)))
    padding = [Pair(1, 2)] * plain_lines
    first_line = plain_lines + header.count("\n") + 1

    assert pairs == padding + [pair for found, _ in alone for pair in found[1:]] + padding
    assert [(bad.line, bad.reason) for bad in bad_lines] == [
        (number, bad.reason) for number, (_, found) in enumerate(alone, first_line) for bad in found
    ]


@example(form=FORMS[0], lines=[["120", "2"], ["#120", "3"]], end="")
@example(form=FORMS[0], lines=[["120", "2"], ["#120", "3"]], end="\n")
@settings(max_examples=300)
@given(
    form=st.sampled_from(FORMS),
    lines=st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=6),
    end=st.sampled_from(["", "\n"]),
)
def test_the_quick_way_reads_what_the_way_for_single_lines_reads(
    folder: Path, form: tuple[str, str, str, str], lines: list[list[str]], end: str
) -> None:
    """A comment in front sends a block the way of single lines: nothing else comes of it than without the comment."""
    ending, header, separator, plain = form
    content = f"{plain}\n" + "\n".join(map(separator.join, lines)) + end
    pairs, bad_lines = read(written(folder / f"quick{ending}", f"{header}{content}"))
    singly, bad_singly = read(written(folder / f"singly{ending}", f"{header}#\n{content}"))

    assert pairs == singly
    assert [(bad.line + 1, bad.reason) for bad in bad_lines] == [(bad.line, bad.reason) for bad in bad_singly]


@settings(max_examples=300)
@given(
    content=st.binary()
    | st.text(alphabet='0123456789,/ \t\n\r#"[]{}:x\0é').map(str.encode)
    | st.binary().map(packed)
    | st.builds(lambda data, at: packed(data)[:at], st.binary(), st.integers(0, 40)),
    ending=st.sampled_from([".csv", ".tsv", ".json", ".jsonl", ".txt", ".csv.gz"]),
    start=st.sampled_from([b"", b"\xef\xbb\xbf", b"\x1f\x8b", b"1,2\n", b"deployment_id;scan_id\n", b"[[1,2],"]),
)
def test_no_content_does_worse_than_a_config_error(folder: Path, content: bytes, ending: str, start: bytes) -> None:
    """Arbitrary bytes give pairs with ids in range, bad lines, or a ConfigError."""
    path = written(folder / f"any{ending}", start + content)
    pairs: list[Pair] = []
    with suppress(ConfigError):
        pairs, _ = read(path)

    assert all(1 <= number <= INT64_MAX for pair in pairs for number in pair)


@pytest.mark.parametrize("command", ["run", "enqueue", "plan"])
def test_an_input_without_a_usable_line_is_exit_2(cli: Command, command: str) -> None:
    """Each command that reads pairs ends with the sentence, and names the one file among several."""
    (cli.folder / "good.csv").write_text("120,1\n")
    (cli.folder / "bad.csv").write_text("deployment_id,scan_id\n" + "120,x\n" * 2_000)
    outcome = cli(command, "good.csv", "bad.csv", environment={"SEMGREP_APP_TOKEN": "unused"})

    assert outcome.exit_code == 2
    assert "bad.csv:2: scan_id 'x' is not a positive integer" in outcome.stderr
    assert outcome.stderr.endswith("Error: bad.csv names no pair: 2,000 lines could not be used\n")


def test_a_file_with_one_usable_line_goes_on(cli: Command, sqlite_url: str) -> None:
    """Its bad lines are counted, and its pair is queued."""
    outcome = cli("enqueue", "-", "--json", "--database-url", sqlite_url, stdin="120 x\n120 1\n")

    assert (outcome.exit_code, outcome.json()["invalid"], outcome.json()["queued"]) == (0, 1, 1)
