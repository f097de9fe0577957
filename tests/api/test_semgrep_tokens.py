"""Tokens that are refused, and 404: whose fault it is."""

import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from patience import PATIENCE_SECONDS
from semgrep_client import asking_at
from semgrep_failures import ONE, failure, failure_of
from small_api import (
    DEPLOYMENTS,
    Call,
    SmallApi,
    found,
    json_answer,
    sees_120,
    until,
)

from etl.errors import FatalError, ItemError, TransientError
from etl.model import Pair
from etl.sandbox import Deployment, Sandbox, Token, World
from etl.telemetry.events import TokenReadAgain


async def gone(_: Call) -> web.StreamResponse:
    return json_answer({"message": "no such scan"}, status=404)


async def test_many_404s_share_a_question() -> None:
    """Only once the token has proved good is a scan gone, and that is asked once for all that wait for it."""

    async def when_all_are_gone(_: Call) -> web.StreamResponse:
        await until(lambda: len(api.details_seen()) == 30)
        return json_answer({"deployments": [{"id": 120}]})

    async with SmallApi(gone, when_all_are_gone) as api, asking_at(api.base_url) as asking:
        scans = [asking.semgrep.scan(Pair(120, number)) for number in range(1, 31)]
        errors = await asyncio.gather(*scans, return_exceptions=True)

    assert {type(error) for error in errors} == {ItemError}
    assert 1 <= api.times[DEPLOYMENTS] <= 5


async def test_a_404_is_not_believed_by_what_the_token_saw_before_it() -> None:
    """A token that loses its scope from one moment to the next buries no scan, however well it has just worked."""
    lost = False

    async def details(call: Call) -> web.StreamResponse:
        return await (gone if lost else found)(call)

    async def deployments(call: Call) -> web.StreamResponse:
        return await (gone if lost else sees_120)(call)

    async with SmallApi(details, deployments) as api, asking_at(api.base_url) as asking:
        await asking.semgrep.check_token(120)
        await asking.semgrep.scan(ONE)
        lost = True
        scans = [asking.semgrep.scan(Pair(120, number)) for number in range(2, 12)]
        errors = await asyncio.gather(*scans, return_exceptions=True)

    assert {getattr(error, "kind", None) for error in errors} == {"token_without_scope"}


async def test_a_404_is_believed_when_another_scan_of_the_deployment_comes_after_it() -> None:
    """Then no question is needed; a scan of another deployment proves nothing."""

    async def answer(call: Call) -> web.StreamResponse:
        return await (gone if call.pair.scan_id == 1 else found)(call)

    async def questions(other: Pair) -> int:
        async with SmallApi(answer) as api, asking_at(api.base_url, rate=20.0) as asking:
            for _ in range(5):
                missing = asyncio.create_task(asking.semgrep.scan(ONE))
                while not missing.done():
                    await asking.semgrep.scan(other)
                with pytest.raises(ItemError):
                    await missing
        return api.times[DEPLOYMENTS]

    same, another = await asyncio.gather(questions(Pair(120, 2)), questions(Pair(121, 2)))

    assert same < another == 5


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, "token_without_scope"), (401, "token_refused"), (410, "endpoint_retired")],
)
async def test_a_404_is_not_believed_when_the_token_is_bad(status: int, kind: str) -> None:
    """Then the token stops its deployment, and no scan is buried."""

    async def refuses(_: Call) -> web.StreamResponse:
        return json_answer({}, status=status)

    async def nothing(_: Call) -> web.StreamResponse:
        return json_answer({}, status=404)

    async with SmallApi(nothing, refuses) as api:
        error = await failure(api.base_url)

    assert isinstance(error, FatalError)
    assert error.kind == kind


async def test_a_404_is_not_believed_while_the_question_has_no_answer() -> None:
    """A pair isn't to blame for that: it comes back later, as it was."""

    async def fails(_: Call) -> web.StreamResponse:
        return json_answer({}, status=500 if down else 200)

    async def nothing(_: Call) -> web.StreamResponse:
        return json_answer({}, status=404)

    down = True
    async with SmallApi(nothing, fails) as api, asking_at(api.base_url) as asking:
        asked = asyncio.create_task(asking.semgrep.scan(ONE))
        await until(lambda: api.times[DEPLOYMENTS] >= 2)
        down = False
        with pytest.raises(TransientError) as caught:
            await asked

    assert not caught.value.spends_attempt


async def test_a_token_of_another_deployment_is_found_out() -> None:
    """The error says whose it is, and stops only the deployment that it was set for."""
    async with SmallApi() as api, asking_at(api.base_url) as asking:

        async def nothing(_: Call) -> web.StreamResponse:
            return json_answer({}, status=404)

        api.details = nothing
        with pytest.raises(FatalError) as at_scan:
            await asking.semgrep.scan(Pair(121, 1))
        with pytest.raises(FatalError) as at_check:
            await asking.semgrep.check_token(122)
        await asking.semgrep.check_token(120)

    assert {caught.value.kind for caught in (at_scan, at_check)} == {"token_of_another_deployment"}
    assert "deployment 121 belongs to deployment 120" in str(at_scan.value)
    assert "deployment 122 belongs to deployment 120" in str(at_check.value)


@pytest.mark.parametrize(
    ("token", "kind"),
    [("sandbox-token", None), ("blind", "token_without_scope"), ("wrong", "token_refused"), (None, "token_missing")],
)
async def test_a_token_is_checked_before_anything_is_fetched(token: str | None, kind: str | None) -> None:
    """Each fault of a token has its kind, and the deployment that it stops."""
    world = World(scans=5, deployments=(Deployment(120, tokens=(Token(), Token("blind", web_api=False))),))
    tokens = {"SEMGREP_APP_TOKEN__120": token} if token else {"SEMGREP_APP_TOKEN__7": "x"}
    found_out = None
    async with Sandbox(world) as base_url, asking_at(base_url, tokens) as asking:
        try:
            await asking.semgrep.check_token(120)
        except FatalError as error:
            found_out = error

    assert (found_out and (found_out.kind, found_out.stop_code)) == (kind and (kind, 3))


@pytest.mark.parametrize(("status", "stop_code"), [(401, 3), (403, 3), (410, 4)])
async def test_what_is_refused_for_good_stops_its_deployment(status: int, stop_code: int) -> None:
    """A revoked token and a retired endpoint are the trouble of the deployment that was asked for."""

    async def refuses(_: Call) -> web.StreamResponse:
        return json_answer({}, status=status)

    async with SmallApi(refuses, refuses) as api:
        error = await failure(api.base_url, retries=2)

    assert isinstance(error, FatalError)
    assert error.stop_code == stop_code


@pytest.mark.parametrize(("status", "kind"), [(401, "refused"), (403, "refused"), (404, "not_found"), (410, "gone")])
async def test_one_path_that_is_refused_is_the_fault_of_its_scan(status: int, kind: str) -> None:
    """The token is good, as it says when it is asked: other scans go on with it, before as after."""

    async def one_refused(call: Call) -> web.StreamResponse:
        return json_answer({"code": "ANOTHER"}, status=status) if call.pair == ONE else await found(call)

    async with SmallApi(one_refused) as api, asking_at(api.base_url) as asking:
        await asking.semgrep.scan(Pair(120, 2))
        with pytest.raises(ItemError) as caught:
            await asking.semgrep.scan(ONE)
        await asking.semgrep.scan(Pair(120, 3))

    assert (caught.value.kind, caught.value.http_status) == (kind, status)


async def test_a_retired_endpoint_is_believed_without_a_question() -> None:
    """It has a code of its own."""

    async def retired(_: Call) -> web.StreamResponse:
        return json_answer({"code": "DEPLOYMENT_MIGRATED"}, status=410)

    error = await failure_of(retired)

    assert isinstance(error, FatalError)
    assert error.kind == "endpoint_retired"


@pytest.mark.parametrize("status", [400, 402, 405, 407, 451])
async def test_whatever_the_deployments_call_answers_is_no_bug_and_buries_no_scan(status: int) -> None:
    """It stops the deployment with exit code 4, in the check as after a 404 of a scan."""

    async def refuses(_: Call) -> web.StreamResponse:
        return json_answer({}, status=status)

    async def nothing(_: Call) -> web.StreamResponse:
        return json_answer({}, status=404)

    async with SmallApi(nothing, refuses) as api, asking_at(api.base_url) as asking:
        with pytest.raises(FatalError) as at_check:
            await asking.semgrep.check_token(120)
        with pytest.raises(FatalError) as at_scan:
            await asking.semgrep.scan(ONE)

    assert {caught.value.stop_code for caught in (at_check, at_scan)} == {4}


async def test_a_token_call_that_fails_while_scans_are_shown_is_not_asked_endlessly() -> None:
    """After max_wait_seconds the deployment that waits for it is given up; the other one goes on."""

    async def fails(_: Call) -> web.StreamResponse:
        return json_answer({}, status=500)

    async with SmallApi(found, fails) as api, asking_at(api.base_url, max_wait_seconds=0.5) as asking:
        await asking.semgrep.scan(ONE)
        with pytest.raises(FatalError) as caught:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await asking.semgrep.check_token(121)
        await asking.semgrep.scan(Pair(120, 2))

    assert caught.value.stop_code == 4


async def test_a_rotated_token_is_read_when_it_is_time_to_ask_again(tmp_path: Path) -> None:
    """Each time, from its file: one that is as before, or gone for a moment, leaves the deployment refused."""
    file = tmp_path / "token"
    file.write_text("old")

    async def knows_the_new_one(call: Call) -> web.StreamResponse:
        is_good = call.request.headers["Authorization"] == "Bearer new"
        answer = sees_120 if call.pair.scan_id == 0 else found
        return await answer(call) if is_good else json_answer({}, status=401)

    async def is_refused() -> bool:
        asking.semgrep.ask_again(120)
        try:
            await asking.semgrep.check_token(120)
            await asking.semgrep.scan(ONE)
        except FatalError as error:
            return error.kind == "token_refused"
        return False

    async with (
        SmallApi(knows_the_new_one, knows_the_new_one) as api,
        asking_at(api.base_url, {"SEMGREP_APP_TOKEN_FILE": str(file)}) as asking,
    ):
        as_before = await is_refused()
        file.unlink()
        without_file = await is_refused()
        file.write_text("new")
        rotated = await is_refused()

    told = [event for event in asking.events if isinstance(event, TokenReadAgain)]
    assert (as_before, without_file, rotated) == (True, True, False)
    assert [event.is_new for event in told] == [False, False, True]
    assert [bool(event.problem and "SEMGREP_APP_TOKEN_FILE" in event.problem) for event in told] == [False, True, False]


async def test_a_token_of_another_deployment_is_replaced_for_its_own_alone(tmp_path: Path) -> None:
    """Two deployments had the same token by mistake: the one that it is for goes on with it."""
    file = tmp_path / "token"
    file.write_text("of-120")
    environment = {"SEMGREP_APP_TOKEN": "of-120", "SEMGREP_APP_TOKEN__121_FILE": str(file)}

    async def sees_its_own(call: Call) -> web.StreamResponse:
        return json_answer({"deployments": [{"id": int(call.request.headers["Authorization"][-3:])}]})

    async with SmallApi(found, sees_its_own) as api, asking_at(api.base_url, environment) as asking:
        await asking.semgrep.check_token(120)
        with pytest.raises(FatalError):
            await asking.semgrep.check_token(121)
        file.write_text("of-121")
        asking.semgrep.ask_again(121)
        await asking.semgrep.check_token(121)
        await asking.semgrep.scan(Pair(121, 1))
        await asking.semgrep.scan(ONE)

    assert [seen.token for seen in api.details_seen()] == ["of-121", "of-120"]
