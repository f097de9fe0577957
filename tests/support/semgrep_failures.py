"""How a request to the API fails."""

from typing import Any

import pytest
from semgrep_client import asking_at
from small_api import (
    Answer,
    SmallApi,
)

from etl.errors import ApiError
from etl.model import Pair

ONE = Pair(120, 1)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


async def failure(base_url: str, pair: Pair = ONE, **settings: Any) -> ApiError:
    """The error that asking for a scan ends with."""
    async with asking_at(base_url, **settings) as asking:
        with pytest.raises(ApiError) as caught:
            await asking.semgrep.scan(pair)
    return caught.value


async def failure_to_reach(base_url: str, **settings: Any) -> ApiError:
    """The error that the first question of all ends with, where no server answers as it should."""
    async with asking_at(base_url, **settings) as asking:
        with pytest.raises(ApiError) as caught:
            await asking.semgrep.seen_by_token_of(120)
    return caught.value


async def failure_of(answer: Answer, **settings: Any) -> ApiError:
    async with SmallApi(answer) as api:
        return await failure(api.base_url, **settings)
