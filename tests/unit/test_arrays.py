"""JSON arrays as pairs files: read as a stream, with a place for what is wrong."""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peak_memory import peak_bytes

from etl.model import Pair
from etl.pairs.arrays import BrokenArrayError, Elements
from etl.pairs.pairs_file import BadLine, read_pairs


def read(path: Path) -> tuple[list[Pair], list[BadLine]]:
    chunks = list(read_pairs(str(path)))
    return [pair for chunk in chunks for pair in chunk.pairs], [bad for chunk in chunks for bad in chunk.bad_lines]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (
            '[{"deployment_id":1,"scan_id":2},\n\n{"deployment_id":1,"scan_id":"abc"},\n[3,4]]\n',
            3,
            "scan_id 'abc' is not",
        ),
        ("[\n[1,2],\n[1,\n120.5],\n[3,4]\n]", 3, "scan_id '120.5' is not a positive integer"),
        ("[[1,2],\n[1],\n[3,4]]", 2, "an array of 1 values instead of 2"),
        ("[[1,2],\n5,\n[3,4]]", 2, "not a JSON object or array"),
        ("[[1,2],\n[1,NaN],\n[3,4]]", 2, "not a JSON object or array"),
        ("[[1,2],\n[1," + "9" * 5_000 + "],\n[3,4]]", 2, "not a JSON object or array (Integer value out of range"),
        ("[[1,2],[3,4]]\n\nthe end\n", 3, "not a JSON array ('t' instead of '['): nothing after this was read"),
        ("[[1,2],[3,4]\n", 2, "not a JSON array (the array is cut off): nothing after this was read"),
        ("[[1,2],[3,4],", 1, "not a JSON array (the array is cut off)"),
        ("[[1,2],[3,4],\n[5", 2, "not a JSON array (the array is cut off)"),
        ('[[1,2],[3,4],\n{"scan_id":5,\n"deployme', 3, "not a JSON array (the array is cut off)"),
        ("[[1,2],[3,4],\n]", 2, "not a JSON array (Expecting value)"),
        ("[[1,2],[3,4]\n[5,6]]", 2, "not a JSON array ('[' instead of ']')"),
        ('[[1,2],[3,4],\n{"a":1\n"b":2},[5,6]]', 3, "not a JSON array (Expecting ',' delimiter)"),
        ("[[1,2],[3,4],\n[5,6}," + "[7,8]," * 30_000, 2, "not a JSON array (Expecting ',' delimiter)"),
        ("[[1,2],[3,4],\n" + "[" * 60_000, 2, "not a JSON array (an element is nested too deeply)"),
        ('[[1,2],[3,4],\n["' + "x" * 200_000, 2, "not a JSON array (an element is longer than 65536 bytes)"),
    ],
)
def test_what_is_wrong_in_an_array_is_a_bad_line_with_a_place(
    tmp_path: Path, text: str, line: int, reason: str
) -> None:
    """The pairs before it are read, and those after it where it is clear where they begin."""
    path = tmp_path / "pairs.json"
    path.write_text(text)
    pairs, bad_lines = read(path)

    assert pairs == [Pair(1, 2), Pair(3, 4)]
    assert [bad.line for bad in bad_lines] == [line]
    assert bad_lines[0].reason.startswith(reason)


def test_arrays_may_follow_each_other(tmp_path: Path) -> None:
    """Page after page of an API, appended to one file, is read whole."""
    path = tmp_path / "pages.json"
    path.write_text('[{"deployment_id":"1","id":"2"}]\n[]\n[[3,4]]')

    assert read(path) == ([Pair(1, 2), Pair(3, 4)], [])


@pytest.mark.parametrize("element", ['{"deploymentId": 120, "scanId": 123, "title": "[{"}', "[120, 123]"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_memory_does_not_grow_with_an_array(tmp_path: Path, element: str, end: str) -> None:
    """A block and a chunk are in memory, where all that the array says would take three times as much, be it a single
    line."""
    path = tmp_path / "pairs.json.gz"
    packer = zlib.compressobj(1, wbits=31)
    path.write_bytes(packer.compress(f"[{element}{f',{end}{element}' * 19_999}]".encode()) + packer.flush())
    counts: list[tuple[int, int]] = []
    peak = peak_bytes(
        lambda: counts.extend((len(c.pairs), c.lines_read) for c in read_pairs(str(path), chunk_size=500))
    )

    assert peak < 1_000_000
    assert sum(pairs for pairs, _ in counts) == 20_000
    assert counts[-1][1] == (20_000 if end else 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    elements=st.lists(JSON, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    block_bytes=st.integers(1, 9),
)
def test_elements_come_as_they_are_wherever_the_blocks_end(
    elements: list[object], indent: int | None, ascii_only: bool, block_bytes: int
) -> None:
    """No cut within a number, a string or a character changes one."""
    data = json.dumps(elements, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    blocks = (data[at : at + block_bytes] for at in range(0, len(data), block_bytes))

    assert [json.loads(text) for _, text in Elements(blocks, "x")] == elements


@given(data=st.text(alphabet='[]{},:"1a \n\\').map(str.encode), block_bytes=st.integers(1, 9))
def test_the_blocks_change_nothing_of_a_broken_array(data: bytes, block_bytes: int) -> None:
    """The same elements, and the same end at the same place, as when all comes in one block."""

    def found(blocks: Iterator[bytes]) -> tuple[list[tuple[int, str]], str, int]:
        elements = Elements(blocks, "x")
        read: list[tuple[int, str]] = []
        try:
            read.extend(elements)
        except BrokenArrayError as error:
            return read, str(error), elements.line
        return read, "", elements.line

    in_blocks = found(data[at : at + block_bytes] for at in range(0, len(data), block_bytes))

    assert in_blocks == found(iter([data]))
