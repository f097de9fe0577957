"""Tokens come from the environment or from files, and are shown nowhere."""

from pathlib import Path

import pytest
from given_settings import SECRET, written

from etl.config.tokens import load_tokens
from etl.errors import ConfigError
from etl.model import INT64_MAX


def test_the_general_token_is_for_all_deployments() -> None:
    """One with a token of its own uses that."""
    tokens = load_tokens(
        {"SEMGREP_APP_TOKEN": "a", "SEMGREP_APP_TOKEN__120": "b", f"SEMGREP_APP_TOKEN__{INT64_MAX}": "c"}
    )

    assert [tokens.for_deployment(n) for n in (1, 120, INT64_MAX)] == ["a", "b", "c"]
    assert tokens.deployment_ids == (120, INT64_MAX)
    assert tokens.variables == ("SEMGREP_APP_TOKEN", "SEMGREP_APP_TOKEN__120", f"SEMGREP_APP_TOKEN__{INT64_MAX}")
    assert tokens


def test_without_a_general_token_others_have_none() -> None:
    """A deployment without a token gets none of another's."""
    tokens = load_tokens({"SEMGREP_APP_TOKEN__120": "b"})

    assert [tokens.for_deployment(n) for n in (1, 120)] == [None, "b"]


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SEMGREP_APP_TOKEN": ""},
        {"SEMGREP_APP_TOKEN": " \n", "SEMGREP_APP_TOKEN__120": "", "SEMGREP_APP_TOKEN_FILE": ""},
        {"SEMGREP_APP_TOKENS": "a", "SEMGREP_APP_TOKEN_120": "b", "semgrep_app_token": "c"},
    ],
)
def test_empty_variables_and_others_are_no_tokens(environ: dict[str, str]) -> None:
    """No token at all counts as False."""
    tokens = load_tokens(environ)

    assert not tokens
    assert tokens.variables == ()


@pytest.mark.parametrize("content", ["a1", "  a1\r\n", "\ufeffa1\n"])
def test_a_token_may_stand_in_a_file(tmp_path: Path, content: str) -> None:
    """Blanks and line ends around it go, and so does a BOM."""
    path = str(written(tmp_path / "token", content))
    tokens = load_tokens({"SEMGREP_APP_TOKEN__120_FILE": path, "SEMGREP_APP_TOKEN": " b2 \n"})

    assert [tokens.for_deployment(n) for n in (1, 120)] == ["b2", "a1"]
    assert tokens.variables == ("SEMGREP_APP_TOKEN", "SEMGREP_APP_TOKEN__120_FILE")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SEMGREP_APP_TOKEN__abc", SECRET, "what follows __ must be a deployment's id, as in SEMGREP_APP_TOKEN__120"),
        ("SEMGREP_APP_TOKEN__", SECRET, "what follows __ must be"),
        ("SEMGREP_APP_TOKEN__0", SECRET, "what follows __ must be"),
        ("SEMGREP_APP_TOKEN__012", SECRET, "what follows __ must be"),
        ("SEMGREP_APP_TOKEN__१२", SECRET, "what follows __ must be"),
        (f"SEMGREP_APP_TOKEN__{INT64_MAX + 1}", SECRET, "what follows __ must be"),
        ("SEMGREP_APP_TOKEN__FILE", SECRET, "what follows __ must be"),
        ("SEMGREP_APP_TOKEN", f"{SECRET} x", "a token has no blanks, control characters or characters outside ASCII"),
        ("SEMGREP_APP_TOKEN", f"{SECRET}\nx", "a token has no blanks"),
        ("SEMGREP_APP_TOKEN__120", f"{SECRET}\x7f", "a token has no blanks"),
        ("SEMGREP_APP_TOKEN", f"{SECRET}ä", "a token has no blanks"),
        ("SEMGREP_APP_TOKEN_FILE", "/no/such/file", "the file can't be read (No such file or directory): give"),
        ("SEMGREP_APP_TOKEN_FILE", "/", "the file can't be read (Is a directory): give"),
        ("SEMGREP_APP_TOKEN_FILE", f"{SECRET}\0", "the file can't be read (it isn't a path): give"),
        ("SEMGREP_APP_TOKEN_FILE", SECRET, "the file can't be read (No such file or directory): give"),
    ],
)
def test_a_wrong_token_is_named_by_its_variable_alone(name: str, value: str, said: str) -> None:
    """The error never shows what may be a token."""
    with pytest.raises(ConfigError) as caught:
        load_tokens({name: value})

    assert str(caught.value).startswith(f"{name}: {said}")
    assert SECRET not in str(caught.value)
    assert "FILE" not in name or value not in str(caught.value).removeprefix(name)


@pytest.mark.parametrize("content", ["", " \n", f"{SECRET} x", b"\xff\xfeh\0", f"{SECRET}\n{SECRET}"])
def test_a_wrong_token_file_is_named(tmp_path: Path, content: str | bytes) -> None:
    """A file with nothing or too much in it gives no token."""
    path = written(tmp_path / "token", content)

    with pytest.raises(ConfigError, match=r"^SEMGREP_APP_TOKEN_FILE: ") as caught:
        load_tokens({"SEMGREP_APP_TOKEN_FILE": str(path)})
    assert SECRET not in str(caught.value)
    assert ("the file is empty: write the token into it" in str(caught.value)) == (not path.read_bytes().strip())


def test_a_token_is_given_once(tmp_path: Path) -> None:
    """A variable and its file are one too many; every problem has its line."""
    path = str(written(tmp_path / "token", "a1"))

    with pytest.raises(ConfigError) as caught:
        load_tokens(
            {
                "SEMGREP_APP_TOKEN": "a",
                "SEMGREP_APP_TOKEN_FILE": path,
                "SEMGREP_APP_TOKEN__7": "a b",
                "SEMGREP_APP_TOKEN__7_FILE": path,
                "SEMGREP_APP_TOKEN__8": "c",
            }
        )
    assert str(caught.value).splitlines() == [
        "SEMGREP_APP_TOKEN and SEMGREP_APP_TOKEN_FILE are both set: keep one",
        "SEMGREP_APP_TOKEN__7: a token has no blanks, control characters or characters outside ASCII",
        "SEMGREP_APP_TOKEN__7 and SEMGREP_APP_TOKEN__7_FILE are both set: keep one",
    ]


def test_no_repr_shows_a_token() -> None:
    """Tokens may stand in a log or a traceback by mistake."""
    tokens = load_tokens({"SEMGREP_APP_TOKEN": SECRET, "SEMGREP_APP_TOKEN__120": SECRET})

    assert SECRET not in f"{tokens} {tokens!r} {[tokens]}"
    assert "SEMGREP_APP_TOKEN__120" in repr(tokens)


def test_tokens_are_read_again_from_where_they_came_from(tmp_path: Path) -> None:
    """What a file holds by now counts; no repr() shows any of it."""
    file = tmp_path / "token"
    file.write_text("old")
    tokens = load_tokens({"SEMGREP_APP_TOKEN__120_FILE": str(file), "SEMGREP_APP_TOKEN": SECRET})
    file.write_text("new")
    again = tokens.read_again().read_again()

    assert [found.for_deployment(120) for found in (tokens, again)] == ["old", "new"]
    assert again.for_deployment(7) == SECRET
    assert SECRET not in repr(again)
