"""Every error that the framework raises on purpose, with the exit code that `framework` ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE, EXIT_FAILED, EXIT_USER_ERROR, EXIT_STOPPED = 0, 1, 2, 130


class FrameworkError(Exception):
    """Base of the errors below; `str(error)` is one line fit for a terminal."""

    exit_code = EXIT_FAILED


class UserError(FrameworkError):
    """The user's input is wrong: names the key or file, the value found, and what is allowed."""

    exit_code = EXIT_USER_ERROR

    def __init__(self, where: str, value: object, allowed: str) -> None:
        self.where, self.value, self.allowed = where, value, allowed
        super().__init__(" ".join(f"{where}: got {value!r}; {allowed}".split()))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, object, str]]:
        """Let the error cross processes: by default exceptions are rebuilt from their message alone."""
        return type(self), (self.where, self.value, self.allowed)


class DamagedState(UserError):
    """A file that the framework wrote has changed, shrunk or gone since; an older checkpoint may serve."""


class RunFailed(FrameworkError):
    """The run itself failed; the same command resumes it once the cause is gone."""


class MismatchTooLarge(RunFailed):
    """Learner and sampler disagree on logprobs by more than `mismatch.stop_above`."""


class NotFinite(RunFailed):
    """A loss, logprob, gradient or weight is not a finite number; starting again would only repeat it."""


class ResponsesLost(FrameworkError):
    """Sampled responses are gone with the machine that kept them; their prompts are to be sampled again."""


class Stopped(FrameworkError):
    """The run was asked to stop (SIGINT, SIGTERM); it saved what it needs to resume."""

    exit_code = EXIT_STOPPED


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return "did you mean 'x'? " for the closest option, or an empty string."""
    close = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'? " if close else ""
