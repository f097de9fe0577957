"""The hosted workflows run what this repository runs, and may do no more than they have to."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / ".github" / "workflows"
TEXTS = {path.name: path.read_text() for path in sorted(FOLDER.iterdir())}
JOBS: dict[tuple[str, str], dict[str, Any]] = {
    (name, job): said for name, text in TEXTS.items() for job, said in yaml.safe_load(text)["jobs"].items()
}
STEPS: list[tuple[tuple[str, str], dict[str, Any]]] = [
    (job, step) for job, said in JOBS.items() for step in said["steps"]
]


def granted(name: str, job: str) -> dict[str, str]:
    """What a job may do: as it says itself, else as its workflow says."""
    permissions: dict[str, str] = JOBS[name, job].get("permissions", yaml.safe_load(TEXTS[name])["permissions"])
    return permissions


def test_each_job_may_do_what_it_needs() -> None:
    """Only the one that publishes can show the index who it is."""
    assert {job: granted(*job) for job in JOBS} == {
        ("ci.yml", "check"): {"contents": "read"},
        ("ci.yml", "image"): {"contents": "read"},
        ("release.yml", "build"): {"contents": "read"},
        ("release.yml", "publish"): {"id-token": "write", "attestations": "write"},
        ("release.yml", "keep"): {"contents": "write"},
    }
    assert JOBS["release.yml", "publish"]["environment"] == "release"


def test_what_decides_is_what_runs_here() -> None:
    """A change and a release pass all of .ci/run; what that has tested is what is published."""
    runs = [(job, step["run"]) for job, step in STEPS if "run" in step]

    assert (("ci.yml", "check"), "bash .ci/run") in runs
    assert (("release.yml", "build"), "bash .ci/run") in runs
    assert [JOBS["release.yml", job].get("needs") for job in ("build", "publish", "keep")] == [None, "build", "publish"]
    assert not re.search(r"make |-m build|checkout", TEXTS["release.yml"].partition("  publish:")[2])


@pytest.mark.parametrize("action", [step["uses"] for _, step in STEPS if "uses" in step])
def test_an_action_has_a_version(action: str) -> None:
    """Nobody's newest commit runs here."""
    assert re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", action)


def test_no_step_keeps_or_is_told_a_secret() -> None:
    """A checkout keeps no token, no secret is stored, and no text of an event becomes a command."""
    checkouts = [step["with"] for _, step in STEPS if "actions/checkout" in step.get("uses", "")]

    assert checkouts == [{"persist-credentials": False}] * 3
    assert [name for name, text in TEXTS.items() if re.search(r"secrets\.|pull_request_target", text)] == []
    assert [step for _, step in STEPS if "${{" in step.get("run", "")] == []


def test_each_supported_python_is_tried() -> None:
    """Those that the package says it is for."""
    project = (FOLDER.parents[1] / "pyproject.toml").read_text()
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", project)

    assert JOBS["ci.yml", "check"]["strategy"]["matrix"]["python"] == named
