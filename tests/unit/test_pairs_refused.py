"""Files of pairs that are refused, and stdin."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from pairs_files import packed, read, written

from etl.errors import ConfigError
from etl.model import Pair
from etl.pairs.pairs_file import BadLine, read_pairs

ROOT = Path(__file__).parents[2]
PACKED, PACKED_NOTHING = packed(b"1 2\n"), packed(b"")


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
        ("a.txt", b"1 2\n\xfe\xff\n", ":2: not UTF-8"),
        ("a.jsonl", b"[1,2]\n" * 20_000 + b'["\xe4",2]', ":20001: not UTF-8"),
        ("a.json", b'[{"a":1},\n["\xe4",2]]', ":2: not UTF-8 (invalid continuation byte): save it as UTF-8"),
        ("a.csv", b"PK\x03\x04\x14\x00", " is an Excel workbook: save it as CSV"),
        ("a.xlsx", b"", " is an Excel workbook: save it as CSV"),
        ("a.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", " is an Excel workbook: save it as CSV"),
        ("a.XLS", b"1,2\n", " is an Excel workbook: save it as CSV"),
        ("a.ods", b"PK\x03\x04\x14\x00", " is a spreadsheet or a zip archive: save it as CSV, or unpack it"),
        ("a.csv.zst", b"\x28\xb5\x2f\xfd", " is compressed, and not with gzip: unpack it"),
        ("a", b"BZh91AY&SY", " is compressed, and not with gzip: unpack it"),
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
