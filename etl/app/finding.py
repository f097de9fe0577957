"""What a check of `doctor` has found."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: `sentence` says how it is, or what to do. `exit_code` is 0 where a run can do with it.

    What should be looked at all the same is a `warning`.
    """

    name: str
    sentence: str
    exit_code: int = 0
    warning: bool = False

    @property
    def ok(self) -> bool:
        """Whether a run can do with it."""
        return self.exit_code == 0
