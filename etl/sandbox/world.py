"""The scans that the sandbox plays. Each is computed from (seed, scan id) alone, so a million of them take
no memory. Pure: the same world gives the same bytes, whatever was asked before.

Scan ids rise with `started_at`, so a search can page through the ids instead of keeping a list.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from random import Random
from typing import NamedTuple

PRODUCTS = ("sast", "sca", "secrets")

_WEEK = timedelta(weeks=1)
_MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
_HOUR_WEIGHTS = [
    9.0 if day < 5 and 7 <= hour < 18 else 3.0 if hour == 2 else 1.0 for day in range(7) for hour in range(24)
]
_WEEK_SHARES = [0.0, *(part / sum(_HOUR_WEIGHTS) for part in accumulate(_HOUR_WEIGHTS))]
_LONGEST_HISTORY = timedelta(days=36_525)

_AREAS = (
    "account audit auth basket billing booking cart catalog checkout claims consent data delivery device"
    " email fraud fleet gateway identity image inventory invoice ledger loyalty mobile notify order partner"
    " payment pricing profile report review risk search session shipping stock tax ticket user wallet"
).split()
_KINDS = "api service worker web jobs sdk infra etl bot proxy".split()
_ORGS = ("acme-retail", "acme-bank", "acme-labs")
_LANGUAGES = ("python", "javascript", "typescript", "go", "java", "ruby")
_PRODUCT_SHARES = (0.95, 0.7, 0.4)
_FIRST_NAMES = "Ada Björn Chloé Dmitri Esra Fatima Goran Hana Iñigo Jun Kofi Lena Mateusz Nia".split()
_LAST_NAMES = "Abara Bauer Costa Dvořák Eriksen García Huang Ito Jansen Kowalski Lund Müller 王".split()
_CHANGES = (
    "fix(api): handle an empty page",
    "feat(ui): filter by owner",
    "chore(deps): bump requests",
    "Merge branch 'main'",
    "refactor(db): one transaction per batch",
    'Revert "Speed up the import"',
    "Añadir límite de tamaño 📦",
    "docs: say what the flag does",
    "Speed up the import",
)
_TRIGGERS = ("pull_request", "push", "schedule", "workflow_dispatch", "unknown")
_TRIGGER_WEIGHTS = (55, 83, 93, 97, 100)
_MANAGED_TRIGGER_WEIGHTS = (60, 60, 96, 96, 100)
_EXIT_CODES = (0, 1, 2, 7, 137, 3, 13, 4, 5, 100, 143, -9, 8, 14)
_EXIT_CODE_WEIGHTS = list(accumulate((740, 190, 30, 10, 7, 4, 4, 3, 3, 3, 2, 2, 1, 1)))


@dataclass(frozen=True, slots=True)
class Token:
    """`web_api` False plays a token without the Web API scope; from `revoked_at` on, the token gets 401."""

    text: str = "sandbox-token"
    web_api: bool = True
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """A token sees the one deployment that it stands in."""

    id: int = 120
    slug: str = "sandbox"
    name: str = "Sandbox"
    tokens: tuple[Token, ...] = (Token(),)


@dataclass(frozen=True, slots=True)
class World:
    """What there is to fetch. Shares are from 0 to 1 and say how many scans, or repositories for
    `managed_share`, are so.

    At `opened_at` exactly `scans` scans exist, the last of them just started; from then on
    `scans_per_day` arrive on average, most of them in office hours. The outcome of a `late_share` comes only up
    to `late_days` after the start. Beside the `repositories` there are `idle_repositories` without scans. Of the
    others, but for the busiest, a `new_share` comes only after `opened_at`, a `renamed_share` gets another name, and an
    `archived_share` goes, each at some time within `changes_days`. `opened_at` None means the moment at which a
    `Sandbox` takes the world. Several deployments take the scan ids in turn. Raises
    ValueError for a world that can't be.
    """

    seed: int = 0
    scans: int = 1_000
    scans_per_day: float = 500.0
    opened_at: datetime | None = None
    first_scan_id: int = 1
    repositories: int = 100
    authors: int = 60
    deployments: tuple[Deployment, ...] = (Deployment(),)
    scanner_share: float = 0.4
    managed_share: float = 0.15
    string_number_share: float = 0.02
    title_map_share: float = 0.1
    never_finished_share: float = 0.01
    cancelled_share: float = 0.005
    late_share: float = 0.0
    late_days: float = 3.0
    idle_repositories: int = 0
    new_share: float = 0.0
    renamed_share: float = 0.0
    archived_share: float = 0.0
    changes_days: float = 365.0

    def __post_init__(self) -> None:
        if min(self.repositories, self.authors, self.first_scan_id, len(self.deployments)) < 1:
            raise ValueError("repositories, authors, first_scan_id and deployments start at 1")
        if self.scans < 0 or self.scans_per_day <= 0:
            raise ValueError("scans can't be below 0, and scans_per_day is above 0")
        if self.scans / self.scans_per_day > _LONGEST_HISTORY.days:
            raise ValueError("the history is longer than a century: raise scans_per_day")
        if len({each.id for each in self.deployments}) < len(self.deployments):
            raise ValueError("two deployments have the same id")
        if self.opened_at is not None and self.opened_at.tzinfo is None:
            raise ValueError("opened_at needs its offset")


class Repository(NamedTuple):
    """`full_seconds` is the median duration of a full scan, `findings` the median number it finds."""

    id: int
    name: str
    url: str
    language: str
    environment: str
    managed: bool
    products: tuple[str, ...]
    full_seconds: float
    findings: float


class Author(NamedTuple):
    name: str
    username: str
    email: str
    image_url: str


class Scan(NamedTuple):
    """The facts of one scan, before they take one of the API's shapes.

    `completed_at` is None where the scan never ends. `scanner_shape`, `string_numbers` and `title_map`
    say how the details call spells it.
    """

    id: int
    deployment_id: int
    repository: Repository
    started_at: datetime
    completed_at: datetime | None
    cancelled: bool
    duration_seconds: float
    exit_code: int
    trigger: str
    branch: str
    products: tuple[str, ...]
    findings: Mapping[str, int]
    commit: str
    title: str
    author: Author
    pull_request_id: int | None
    pull_request_author: Author
    scanner_shape: bool
    string_numbers: bool
    title_map: bool

    @property
    def is_full_scan(self) -> bool:
        return self.trigger != "pull_request"


def rng(seed: int, what: str, number: int) -> Random:
    return Random(f"{seed} {what} {number}")  # noqa: S311 - data for play, no secret


def dice(seed: int, what: str, number: int | str) -> float:
    """An even throw from 0 up to 1, always the same for the same arguments. Cheaper than `rng`."""
    digest = blake2b(f"{seed} {what} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def started_at(world: World, scan_id: int) -> datetime:
    """When the scan begins; rises with the id. Each scan has a slot of the week's rhythm to itself."""
    last = world.first_scan_id + world.scans - 1
    slot = scan_id - last - 0.99 * dice(world.seed, "start", scan_id)
    return _at_rhythm(_opening(world.opened_at) + slot / (7 * world.scans_per_day))


def newest_id(world: World, now: datetime) -> int:
    """The last scan that has begun; one below `first_scan_id` when none has."""
    weeks = _rhythm(now) - _opening(world.opened_at)
    scan_id = world.first_scan_id + world.scans - 1 + int(weeks * 7 * world.scans_per_day)
    while started_at(world, scan_id + 1) <= now:
        scan_id += 1
    while scan_id >= world.first_scan_id and started_at(world, scan_id) > now:
        scan_id -= 1
    return max(scan_id, world.first_scan_id - 1)


def deployment_of(world: World, scan_id: int) -> Deployment:
    return world.deployments[(scan_id - world.first_scan_id) % len(world.deployments)]


def ids_downwards(world: World, deployment: Deployment, newest: int) -> Iterator[int]:
    """The scan ids of one deployment from `newest` down."""
    step = len(world.deployments)
    behind = (newest - world.first_scan_id - world.deployments.index(deployment)) % step
    return iter(range(newest - behind, world.first_scan_id - 1, -step))


def scan(world: World, scan_id: int) -> Scan:
    """The scan as it will be in the end. Any id from `first_scan_id` up has one, also in the future."""
    draw = rng(world.seed, "scan", scan_id)
    roll = draw.random
    # A draw that is even on a logarithmic scale: repository k is as busy as 1/k (Zipf's law).
    began = started_at(world, scan_id)
    repository = repository_at(world, _index(world, roll(), began), began)
    weights = _MANAGED_TRIGGER_WEIGHTS if repository.managed else _TRIGGER_WEIGHTS
    trigger = draw.choices(_TRIGGERS, cum_weights=weights)[0]
    pull_request_id = 1 + int(roll() * 4_000) if trigger == "pull_request" else None
    median_seconds = repository.full_seconds if pull_request_id is None else repository.full_seconds / 5
    straggler = 30 if roll() < 0.02 else 1
    duration = min(max(2.0, median_seconds * straggler * draw.lognormvariate(0, 0.6)), 6 * 3600.0)
    if world.late_share and dice(world.seed, "late", scan_id) < world.late_share:
        duration = 3600.0 + dice(world.seed, "lateness", scan_id) * world.late_days * 86_400
    exit_code = draw.choices(_EXIT_CODES, cum_weights=_EXIT_CODE_WEIGHTS)[0]
    title = _CHANGES[int(roll() * len(_CHANGES))]
    author = _author(int(roll() * world.authors))
    ending = roll()
    cancelled = ending < world.cancelled_share
    never = ending >= 1 - world.never_finished_share
    return Scan(
        id=scan_id,
        deployment_id=deployment_of(world, scan_id).id,
        repository=repository,
        started_at=began,
        completed_at=None if cancelled or never else began + timedelta(microseconds=int(duration * 1e6)),
        cancelled=cancelled,
        duration_seconds=round(duration, 3),
        exit_code=exit_code,
        trigger=trigger,
        branch=_branch(draw, repository, trigger, pull_request_id),
        products=repository.products,
        findings=_findings(draw, repository, exit_code, full=pull_request_id is None),
        commit=f"{draw.getrandbits(160):040x}",
        title=title,
        author=author,
        pull_request_id=pull_request_id,
        pull_request_author=author if roll() < 0.8 else _author(int(roll() * world.authors)),
        scanner_shape=roll() < world.scanner_share,
        string_numbers=roll() < world.string_number_share,
        title_map=": " in title and roll() < world.title_map_share,
    )


def _index(world: World, roll: float, at: datetime) -> int:
    """Which repository a scan that begins then is of, by its first draw; the busiest for one that isn't there."""
    index = int((world.repositories + 1) ** roll) - 1
    return index if exists(world, index, at) else 0


def repository_index(world: World, scan_id: int) -> int:
    """Which repository the scan is of."""
    return _index(world, rng(world.seed, "scan", scan_id).random(), started_at(world, scan_id))


def _changed(world: World, what: str, share: float, index: int, at: datetime) -> bool | None:
    """Whether a change of a repository has come; None if it never does."""
    is_one = 0 < index < world.repositories and share and dice(world.seed, what, index) < share
    if not is_one or world.opened_at is None:
        return None
    days = dice(world.seed, f"{what} after", index) * world.changes_days
    return at >= world.opened_at + timedelta(days=days)


def exists(world: World, index: int, at: datetime) -> bool:
    """Whether a repository is there at that time, neither new nor archived."""
    has_come = _changed(world, "new", world.new_share, index, at) in (None, True)
    return has_come and not _changed(world, "archived", world.archived_share, index, at)


def repository_at(world: World, index: int, at: datetime) -> Repository:
    """A repository, with the name that it has at that time."""
    found = _repository(world.seed, index, world.managed_share)
    if not _changed(world, "renamed", world.renamed_share, index, at):
        return found
    return found._replace(name=f"{found.name}-renamed", url=f"{found.url}-renamed")


@lru_cache(maxsize=64)
def _opening(opened_at: datetime | None) -> float:
    if opened_at is None:
        raise ValueError("this world has not been opened: give it opened_at")
    return _rhythm(opened_at)


def _rhythm(at: datetime) -> float:
    """Weeks since a Monday, where busy hours count for more. The opposite of `_at_rhythm`."""
    weeks, rest = divmod(at - _MONDAY, _WEEK)
    hour, part = divmod(rest.total_seconds() / 3600, 1)
    low, high = _WEEK_SHARES[int(hour)], _WEEK_SHARES[int(hour) + 1]
    return weeks + low + (high - low) * part


def _at_rhythm(position: float) -> datetime:
    weeks, share = divmod(position, 1)
    hour = bisect_right(_WEEK_SHARES, share, hi=len(_WEEK_SHARES) - 1) - 1
    low, high = _WEEK_SHARES[hour], _WEEK_SHARES[hour + 1]
    return _MONDAY + timedelta(weeks=weeks, hours=hour + (share - low) / (high - low))


@lru_cache(maxsize=4_096)
def _repository(seed: int, index: int, managed_share: float) -> Repository:
    draw = rng(seed, "repository", index)
    round_, place = divmod(index, len(_AREAS) * len(_KINDS))
    kind, area = divmod(place, len(_AREAS))
    name = f"{_ORGS[index % len(_ORGS)]}/{_AREAS[area]}-{_KINDS[kind]}{f'-{round_ + 1}' if round_ else ''}"
    host, environment = ("github.com", "github-actions") if draw.random() < 0.8 else ("gitlab.com", "gitlab-ci")
    return Repository(
        id=1_000_000 + index,
        name=name,
        url=f"https://{host}/{name}",
        language=draw.choice(_LANGUAGES),
        environment=environment,
        managed=draw.random() < managed_share,
        products=tuple(p for p, share in zip(PRODUCTS, _PRODUCT_SHARES, strict=True) if draw.random() < share)
        or ("secrets",),
        full_seconds=draw.lognormvariate(5.5, 0.9),
        findings=draw.lognormvariate(2, 1),
    )


@lru_cache(maxsize=4_096)
def _author(index: int) -> Author:
    first = _FIRST_NAMES[index % len(_FIRST_NAMES)]
    last = _LAST_NAMES[index // len(_FIRST_NAMES) % len(_LAST_NAMES)]
    username = f"dev-{index + 1}"
    image_url = f"https://avatars.example.com/u/{index + 1}?v=4"
    return Author(f"{first} {last}", username, f"{username}@example.com", image_url)


def _branch(draw: Random, repository: Repository, trigger: str, pull_request_id: int | None) -> str:
    on_github = repository.environment == "github-actions"
    if pull_request_id is not None and on_github:
        return f"refs/pull/{pull_request_id}/merge"
    default = trigger != "pull_request" and draw.random() < 0.85
    name = "main" if default else f"feature/{draw.choice(_AREAS)}-{draw.randrange(1, 400)}"
    return f"refs/heads/{name}" if on_github else name


def _findings(draw: Random, repository: Repository, exit_code: int, *, full: bool) -> dict[str, int]:
    if exit_code not in (0, 1):
        return {}
    median = repository.findings * (1.0 if full else 0.05)
    found = {product: int(median * draw.lognormvariate(0, 0.5)) for product in repository.products}
    if exit_code == 1 and not any(found.values()):
        found[repository.products[0]] = 1  # exit code 1 says that something was found
    return found
