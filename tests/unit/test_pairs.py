"""What pairs files are read as: all their forms, and what becomes of wrong lines and wrong files."""

import gzip
import json
from pathlib import Path

import pytest
from pairs_files import read, written
from peak_memory import peak_bytes

from etl.model import INT64_MAX, Pair
from etl.pairs.lines import MAX_LINE_BYTES
from etl.pairs.pairs_file import BadLine, read_pairs

BLOCK_BYTES = 65_536


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
        ("for_excel.csv", "sep=;\ndeployment_id;scan_id\n120;123\n120;124\n"),
        ("floats.txt", "120.0 123\n120/124.0\n"),
        ("floats.jsonl", '[120.0,123]\n{"deployment_id":"120.0","id":124.0}\n'),
        (
            "addresses.txt",
            "https://semgrep.dev/api/v1/deployments/120/scan/123\nhttp://x/deployments/120/scans/124/logs?a=1#b\n",
        ),
    ],
)
@pytest.mark.parametrize("wrap", ["plain", "gz", "gz_without_the_name", "crlf", "bom", "utf16", "comments"])
def test_every_form_is_read(tmp_path: Path, name: str, content: str, wrap: str) -> None:
    """Each form gives the same pairs: compressed, with a BOM, in UTF-16, with CRLF, among comments and blank lines."""
    data = content.encode()
    if wrap == "crlf":
        data = data.replace(b"\n", b"\r\n")
    elif wrap == "bom":
        data = b"\xef\xbb\xbf" + data
    elif wrap == "utf16":
        data = content.replace("\n", "\r\n").encode("utf-16")
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
        ("1.000", "scan_id '1.000' is not a positive integer"),
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
        ("a.csv", "1", "1 column instead of 2"),
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
    ("line", "count", "most_bytes"),
    [
        (b"120,123\n", 100_000, 4_000_000),
        (b'120,"123"\n', 20_000, 1_400_000),
        (b"120,x\n", 20_000, 1_400_000),
        (b'"\n', 20_000, 1_400_000),
        (b"x", 30_000_000, 1_400_000),
    ],
    ids=["plain", "quoted", "bad", "open_quotes", "endless"],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, line: bytes, count: int, most_bytes: int) -> None:
    """A few blocks and one chunk are in memory, where all that the file says would take twice as much, or more."""
    path = written(tmp_path / "pairs.csv.gz", gzip.compress(b"1,2\n" + line * count, compresslevel=1))
    lines_read: list[int] = []
    peak = peak_bytes(lambda: lines_read.extend(c.lines_read for c in read_pairs(str(path), chunk_size=500)))

    assert peak < most_bytes
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
