"""Properties of reading pairs: every form that is written is read back."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pairs_files import packed, read, written

from etl.errors import ConfigError
from etl.model import INT64_MAX, Pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for tests that write many files, one after the other."""
    return tmp_path_factory.mktemp("pairs")


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
