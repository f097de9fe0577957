"""What the page is made of: sections of sentences, charts and tables."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from etl.report import words
from etl.report.figures import Figures


class Table(NamedTuple):
    """Cells as texts. `numbers` are the columns that are right-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Collection[int]


class Chart(NamedTuple):
    """A picture, what it says in words, and its numbers."""

    title: str
    alternative: str
    svg: str
    table: Table


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, sentences, charts and tables."""

    title: str
    sentences: Sequence[str]
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()


def in_period(figures: Figures) -> str:
    return f"from {words.span(figures.question.period)}"


def place_cells(figures: Figures, deployment_id: int) -> list[str]:
    """The cell of the deployment, where there is more than one."""
    names = {one.deployment_id: words.deployment(one) for one in figures.deployments}
    return [names.get(deployment_id, str(deployment_id))] if len(names) > 1 else []


def repository_table(figures: Figures, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Repositories, their deployments where there is more than one, and numbers."""
    first = ["Repository", *(["Deployment"] if len(figures.deployments) > 1 else [])]
    return Table(title, [*first, *columns], rows, range(len(first), len(first) + len(columns)))
