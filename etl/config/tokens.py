"""The tokens of the API. They come from the environment alone: flags stand in the process list, and a TOML file ends up
in a repository some day.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from etl.config.secret import read_secret
from etl.errors import ConfigError
from etl.model import INT64_MAX

TOKEN_VARIABLE = "SEMGREP_APP_TOKEN"  # noqa: S105 - the name of a variable


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The tokens of the API, one for all deployments or one for each. False if there is none.

    `variables` names the environment variables that they came from. No repr() shows a token.
    """

    variables: tuple[str, ...]
    _by_deployment: Mapping[int | None, str] = field(repr=False)
    _environ: Mapping[str, str] = field(repr=False)

    def __bool__(self) -> bool:
        return bool(self._by_deployment)

    def for_deployment(self, deployment_id: int) -> str | None:
        """The deployment's own token, else the one for all, else None."""
        return self._by_deployment.get(deployment_id) or self._by_deployment.get(None)

    def read_again(self) -> "Tokens":
        """What the same variables and their files hold by now. ConfigError as for `load_tokens`."""
        return load_tokens(self._environ)

    @property
    def deployment_ids(self) -> tuple[int, ...]:
        """The deployments that have a token of their own, ascending."""
        return tuple(sorted(one for one in self._by_deployment if one is not None))


_TOKEN_NAME = re.compile(rf"{TOKEN_VARIABLE}(?:__(?P<deployment_id>[1-9]\d{{0,18}}))?(?:_FILE)?", re.ASCII)


def load_tokens(environ: Mapping[str, str]) -> Tokens:
    """Read SEMGREP_APP_TOKEN, SEMGREP_APP_TOKEN__120 for one deployment, and the files that the same names
    with _FILE at their end point to.

    Raises ConfigError, with one line for each problem. It names the variable, never its value.
    """
    variables: dict[int | None, str] = {}
    tokens: dict[int | None, str] = {}
    problems = []
    for name, value in sorted(environ.items()):
        match = _TOKEN_NAME.fullmatch(name)
        deployment_id = int(match["deployment_id"]) if match and match["deployment_id"] else None
        if not value.strip() or not (match or name.startswith(f"{TOKEN_VARIABLE}__")):
            continue
        try:
            if not match or (deployment_id or 0) > INT64_MAX:
                raise ConfigError(f"{name}: what follows __ must be a deployment's id, as in {TOKEN_VARIABLE}__120")
            if deployment_id in variables:
                raise ConfigError(f"{variables[deployment_id]} and {name} are both set: keep one")
            variables[deployment_id] = name
            tokens[deployment_id] = read_secret(name, value, "token")
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    named = MappingProxyType({name: environ[name] for name in variables.values()})
    return Tokens(tuple(sorted(variables.values())), MappingProxyType(tokens), named)
