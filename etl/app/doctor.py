"""Whether everything is in place for a run: one finding for each thing that may be missing."""

import asyncio
import os
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from etl.app.file_finding import file_findings
from etl.app.finding import Finding
from etl.app.privacy import privacy_of
from etl.app.search_kind import ask_for_scans
from etl.config.proxies import Proxy
from etl.config.settings import PRIVACY_KEY, ApiSettings, Settings
from etl.config.tokens import Tokens, load_tokens
from etl.config.urls import Address
from etl.database.connection import Database, check_schema
from etl.database.engine import display_url, holds_database, sqlite_path
from etl.database.rights import missing_rights
from etl.database.schema import HEAD, metadata
from etl.database.server import narrow_encoding, product
from etl.errors import (
    TOKEN_EXIT,
    UNAVAILABLE_EXIT,
    ConfigError,
    DatabaseError,
    FatalError,
    ItemError,
    SchemaBehindError,
    TransientError,
)
from etl.model import NO_DEPLOYMENT
from etl.semgrep.client import Ping, Semgrep
from etl.semgrep.responses import token_of_another
from etl.store import status
from etl.telemetry.events import RunCounts

T = TypeVar("T")

LARGEST_SKEW_SECONDS = 30
LONGEST_WAIT_SECONDS = 5.0
"""How long an API that fails is waited for."""
LIVING_STATUSES = frozenset({200, 401, 403, 429})
"""What an API that lives may say to a ping, whatever it thinks of one without a token."""
SETTINGS_EXIT, DATABASE_EXIT = ConfigError.exit_code, DatabaseError.exit_code
NO_TOKENS = load_tokens({})
EXIT_CODES = (SETTINGS_EXIT, TOKEN_EXIT, DATABASE_EXIT, UNAVAILABLE_EXIT)
"""Of several failures, the first in this order gives the exit code."""


class _OwnTime:
    """A line of time that nobody shares: the few requests here shouldn't queue behind those of a run."""

    async def reserve(self, seconds: float) -> float:  # noqa: ARG002 - as slot_schedule.Budget has it
        return 0.0

    async def hold(self, seconds: float) -> None:
        pass


def exit_code_of(findings: Iterable[Finding]) -> int:
    """0 if a run could start, else the code of the failure that would stop it first."""
    found = {finding.exit_code for finding in findings}
    return next((code for code in EXIT_CODES if code in found), 0)


async def examine(
    read_settings: Callable[[], Settings],
    read_tokens: Callable[[], Tokens],
    read_proxy: Callable[[str], Proxy | None] = lambda _: None,
) -> list[Finding]:
    """Make all checks. What can't be looked at before something else is fixed says so. No sentence holds a secret."""
    settings, tokens = _loaded("settings", read_settings), _loaded("tokens", read_tokens)
    findings = [
        settings if isinstance(settings, Finding) else Finding("settings", sources(settings)),
        tokens if isinstance(tokens, Finding) else tokens_finding(tokens),
    ]
    if isinstance(settings, Finding):
        return findings + unchecked(["api", "database"], "settings", SETTINGS_EXIT)
    findings += privacy_findings(settings)
    usable = NO_TOKENS if isinstance(tokens, Finding) else tokens
    about_api, seen = await _examine_way_and_api(settings.api, usable, read_proxy)
    try:
        about_database = _examine_database(settings.database.address, partial(_lacks_token, usable, seen))
    except ConfigError as error:  # its driver isn't installed
        about_database = [Finding("database", str(error), SETTINGS_EXIT)]
    return findings + about_api + about_database


def _loaded(name: str, read: Callable[[], T]) -> T | Finding:
    try:
        return read()
    except ConfigError as error:
        return Finding(name, "; ".join(str(error).splitlines()), SETTINGS_EXIT)


def unchecked(names: Iterable[str], cause: str, exit_code: int) -> list[Finding]:
    """Findings about what can't be looked at before `cause` is fixed."""
    return [Finding(name, f"not checked: fix the {cause} first", exit_code) for name in names]


# Settings and tokens


def sources(settings: Settings) -> str:
    """Which settings came from where."""
    keys: dict[str, list[str]] = {}
    for key, source in settings.sources.items():
        keys.setdefault("the environment" if source.startswith("environment ") else source, []).append(key)
    given = [f"{', '.join(names)} from {source}" for source, names in keys.items()]
    return "; ".join([*given, "the rest are defaults"]) if given else "all are defaults"


def tokens_finding(tokens: Tokens) -> Finding:
    """Whether there is a token at all."""
    if tokens:
        return Finding("tokens", ", ".join(tokens.variables))
    sentence = "none: set SEMGREP_APP_TOKEN or SEMGREP_APP_TOKEN_FILE to a token with the Web API scope"
    return Finding("tokens", sentence, TOKEN_EXIT)


def privacy_findings(settings: Settings) -> list[Finding]:
    """Whether there is a key, where people are hashed."""
    if settings.privacy.author != "hash":
        return []
    try:
        privacy_of(settings)
    except ConfigError as error:
        return [Finding("privacy", str(error), SETTINGS_EXIT)]
    return [Finding("privacy", f"people are hashed with the key from the {settings.sources[PRIVACY_KEY]}")]


# The API


async def _examine_way_and_api(
    settings: ApiSettings, tokens: Tokens, read_proxy: Callable[[str], Proxy | None]
) -> tuple[list[Finding], frozenset[int]]:
    """How the API is reached, where there is something to say of that, and what it says."""
    proxy = _loaded("proxy", lambda: read_proxy(settings.base_url))
    if isinstance(proxy, Finding):
        return [proxy, *unchecked(["api"], "proxy", SETTINGS_EXIT)], frozenset()
    findings = [Finding("proxy", f"{proxy.address} from {proxy.variable}")] if proxy else []
    findings += [certificates_finding()] if settings.base_url.startswith("https:") else []
    about_api, seen = await _examine_api(settings, tokens, proxy)
    return findings + about_api, seen


def certificates_finding() -> Finding:
    """Whose certificates are trusted, by the rules of OpenSSL."""
    paths = ssl.get_default_verify_paths()
    in_force = {paths.openssl_cafile_env: paths.cafile, paths.openssl_capath_env: paths.capath}
    named = {variable: place for variable in in_force if (place := os.environ.get(variable))}
    for variable, place in named.items():
        if not in_force[variable]:
            sentence = f"{variable} names {place}, which has no certificates: name those of the API's authority"
            return Finding("certificates", sentence, warning=True)
    shown = [f"{place} ({variable})" if variable in named else place for variable, place in in_force.items() if place]
    return Finding("certificates", f"those in {' and '.join(shown) or 'no place'} are trusted")


async def _examine_api(
    settings: ApiSettings, tokens: Tokens, proxy: Proxy | None
) -> tuple[list[Finding], frozenset[int]]:
    """What the API says, and the deployments that the token for all of them sees."""
    once = settings.model_copy(
        update={"retries": 0, "max_wait_seconds": min(settings.max_wait_seconds, LONGEST_WAIT_SECONDS)}
    )
    whose = [*tokens.deployment_ids, *([NO_DEPLOYMENT] if tokens.for_deployment(NO_DEPLOYMENT) else [])]
    async with Semgrep(once, tokens, lambda _: _OwnTime(), RunCounts(), lambda _: None, proxy=proxy) as semgrep:
        about_api = await _ping(semgrep, settings.base_url)
        if not about_api[0].ok:
            names = [_token_name(deployment_id) for deployment_id in whose]
            return about_api + unchecked(names, "api", UNAVAILABLE_EXIT), frozenset()
        asked = await asyncio.gather(*(_ask_about(semgrep, deployment_id) for deployment_id in whose))
        seen = asked[-1][1] if whose[-1:] == [NO_DEPLOYMENT] else frozenset()
        usable = {*seen, *(number for number, (finding, _) in zip(whose, asked, strict=True) if number and finding.ok)}
        found = await asyncio.gather(*(ask_for_scans(semgrep, deployment_id) for deployment_id in sorted(usable)))
    return about_api + [finding for finding, _ in asked] + [finding for each in found for finding in each], seen


async def _ping(semgrep: Semgrep, base_url: str) -> list[Finding]:
    try:
        ping = await semgrep.ping()
    except (TransientError, FatalError) as error:
        return [
            Finding("api", f"{base_url} doesn't answer: {error}", UNAVAILABLE_EXIT),
            *unchecked(["clock"], "api", UNAVAILABLE_EXIT),
        ]
    return [api_finding(base_url, ping), clock_finding(ping.server_time, datetime.now(UTC))]


def api_finding(base_url: str, ping: Ping) -> Finding:
    """What the answer to a ping says."""
    if ping.status in LIVING_STATUSES:
        return Finding("api", f"{base_url} answers in {ping.seconds * 1000:.0f} ms")
    sentence = f"{base_url} answers a ping with HTTP {ping.status}: look at api.base_url, or try again later"
    return Finding("api", sentence, UNAVAILABLE_EXIT)


def clock_finding(server_time: datetime | None, now: datetime) -> Finding:
    """How far this machine's clock is from the API's."""
    if server_time is None:
        return Finding("clock", "the API doesn't say what time it is")
    seconds = round((now - server_time).total_seconds())
    if abs(seconds) <= LARGEST_SKEW_SECONDS:
        return Finding("clock", f"within {max(abs(seconds), 1)} s of the API's")
    side = "ahead of" if seconds > 0 else "behind"
    return Finding("clock", f"{abs(seconds):,} s {side} the API's: set this machine's clock", warning=True)


async def _ask_about(semgrep: Semgrep, deployment_id: int) -> tuple[Finding, frozenset[int]]:
    name = _token_name(deployment_id)
    try:
        seen = await semgrep.seen_by_token_of(deployment_id)
        if deployment_id != NO_DEPLOYMENT and seen and deployment_id not in seen:
            raise token_of_another(deployment_id, seen)
    except FatalError as error:
        return Finding(name, str(error), error.stop_code), frozenset()
    except (TransientError, ItemError) as error:
        return Finding(name, f"not checked: {error}", UNAVAILABLE_EXIT), frozenset()
    shown = ", ".join(map(str, sorted(seen))) or "that it doesn't name"
    return Finding(name, f"accepted; it sees deployment {shown}"), seen


def _token_name(deployment_id: int) -> str:
    return "token" if deployment_id == NO_DEPLOYMENT else f"token for {deployment_id}"


# The database


def _examine_database(address: Address, lacks_token: Callable[[int], bool]) -> list[Finding]:
    """Look at the file, then connect and go on until something is missing."""
    path = sqlite_path(address.url)
    findings = [] if path is None else file_findings(path)
    checks: dict[str, Callable[[Connection], Finding]] = {
        "database": partial(_database, url=address.url),
        "schema": _schema,
        "queue": partial(_queue, lacks_token=lacks_token),
        "write": _write,
    }
    missing = next((finding.name for finding in findings if not finding.ok), None)
    if missing is None and path is not None and not holds_database(path):
        return findings  # all the rest is in the file that a run makes
    with closing(Database(address, reads_only=True)) as to_read, closing(Database(address)) as to_write:
        for name, check in checks.items():
            if missing is not None:
                findings += unchecked([name], missing, DATABASE_EXIT)
                continue
            try:
                findings.append((to_write if check is _write else to_read).run_here(check))
            except DatabaseError as error:
                if path is not None and isinstance(error, SchemaBehindError):
                    return [*findings, Finding(name, f"not at {HEAD} yet: a run upgrades it, or `scan-etl db upgrade`")]
                findings.append(Finding(name, str(error), DATABASE_EXIT))
                missing = name
    return findings


def _database(connection: Connection, url: str) -> Finding:
    found = f"{product(connection)}, {display_url(url)}"
    if encoding := narrow_encoding(connection):
        dies = "a scan with a character that it lacks becomes a dead letter (refused_row)"
        return Finding("database", f"{found}, in {encoding}: {dies}; make one with ENCODING 'UTF8'", warning=True)
    return Finding("database", found)


def _schema(connection: Connection) -> Finding:
    check_schema(connection)
    return Finding("schema", f"at {HEAD}, the newest")


def _queue(connection: Connection, lacks_token: Callable[[int], bool]) -> Finding:
    rows = status.depth(connection)
    lacking = [
        row["deployment_id"]
        for row in rows
        if any(row[state] for state in status.STATES) and lacks_token(row["deployment_id"])
    ]
    if lacking:
        shown = ", ".join(map(str, lacking))
        sentence = f"pairs of deployment {shown} are queued, but no token sees it: set SEMGREP_APP_TOKEN__{lacking[0]}"
        return Finding("queue", sentence, TOKEN_EXIT)
    counts = {state: sum(row[state] for row in rows) for state in (*status.STATES, "dead")}
    dead = counts.pop("dead")
    queued = ", ".join(f"{count:,} {state}" for state, count in counts.items() if count) or "empty"
    letters = f"{dead:,} dead letters: see `scan-etl failures list`" if dead else "no dead letters"
    waits = "".join(f"; {_wait(row)}" for row in status.held_paces(connection))
    return Finding("queue", f"{queued}; {letters}{waits}", warning=bool(waits))


def _wait(held: Mapping[str, Any]) -> str:
    whose = "a token" if held["deployment_id"] is None else f"the token of deployment {held['deployment_id']}"
    return f"no request is sent with {whose} until {held['until_at']:%Y-%m-%d %H:%M:%S} UTC: the API has refused it"


def _lacks_token(tokens: Tokens, seen: frozenset[int], deployment_id: int) -> bool:
    """Whether none of the tokens is for a deployment. One that sees nothing for sure gets the benefit of the doubt."""
    if deployment_id in tokens.deployment_ids:
        return False
    return bool(tokens) and (tokens.for_deployment(deployment_id) is None or (bool(seen) and deployment_id not in seen))


def _write(connection: Connection) -> Finding:
    if missing := missing_rights(connection):
        lacks = "; ".join(f"{right} on {_shown_tables(tables)}" for right, tables in missing.items())
        raise DatabaseError(f"the role lacks {lacks}: have the owner of the tables run `scan-etl db grant writer ROLE`")
    if not status.rehearse(connection):
        raise DatabaseError("a test pair was queued, but couldn't be leased")
    return Finding("write", "a test pair was queued, leased and rolled back")


def _shown_tables(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < len(metadata.tables) else "all tables"
