"""Secrets in the dresses in which servers and libraries quote them: none of them shows."""

import html
import json
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.config.secret import MASK, masked, without_cut_secret

SECRET = 's3cr+et/tok"en-&x_\\?0123456789abcdef~'
IN_JSON = json.dumps(SECRET)[1:-1]
DRESSES = {
    "plain": SECRET,
    "percent-encoded": quote(SECRET, safe=""),
    "percent-encoded as a path": quote(SECRET),
    "percent-encoded in small letters": "".join(f"%{ord(character):02x}" for character in SECRET),
    "percent-encoded twice": quote(quote(SECRET, safe=""), safe=""),
    "in JSON": IN_JSON,
    "in JSON with escaped slashes": IN_JSON.replace("/", "\\/"),
    "in JSON in JSON": json.dumps(IN_JSON)[1:-1],
    "in JSON by numbers": "".join(f"\\u{ord(character):04X}" for character in SECRET),
    "in HTML": html.escape(SECRET),
}


@pytest.mark.parametrize("dress", DRESSES.values(), ids=DRESSES)
def test_a_secret_is_masked_in_every_usual_dress(dress: str) -> None:
    """Nothing else of the text is."""
    assert masked(f"before {dress} behind", "other", SECRET) == f"before {MASK} behind"


@given(
    secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8),
    before=st.binary(max_size=9),
    behind=st.binary(max_size=9),
)
def test_a_secret_is_masked_in_any_piece_of_base64(secret: str, before: bytes, behind: bytes) -> None:
    """Such as that of `Basic` user:password, and that for URLs: of its letters at most those at its two ends are left,
    which hold less than a whole character."""
    whole = before + secret.encode() + behind
    encoded_once = [encode(whole).decode() for encode in (b64encode, urlsafe_b64encode)]
    for encoded in (*encoded_once, encoded_once[0].replace("/", "\\/"), quote(encoded_once[0], safe="=")):
        said = masked(f"Authorization: Basic {encoded}.", secret)

        assert MASK in said
        longest_left = -(-len(before) * 8 // 6) + -(-len(behind) * 8 // 6) + 8
        longest_left *= 3  # each may be escaped
        assert len(said) <= len("Authorization: Basic .") + len(MASK) + longest_left


@given(secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1), text=st.text())
def test_no_text_keeps_a_secret(secret: str, text: str) -> None:
    """Wherever it stands, if it stands for itself."""
    said = masked(f"{text} {secret} {text}", secret)

    assert f" {secret} " not in said or secret in MASK


def test_no_secret_masks_nothing() -> None:
    """An empty one is none."""
    assert masked("as it was", "", "") == "as it was"


def test_a_piece_ends_before_what_may_be_the_beginning_of_a_secret() -> None:
    """In its longest dress."""
    piece = b"x" * 100

    assert without_cut_secret(piece, "s3cret", "s") == piece[:-36]
    assert without_cut_secret(piece[:10], "s3cret") == b""
    assert without_cut_secret(piece) == piece
