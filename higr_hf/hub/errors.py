"""What the Hub refuses, in words: what was wrong, where, and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

NOTHING_VISIBLE = (
    "Nothing of this upload is visible: the files appear together, in one commit, at its end. Run the same command "
    "again; what has arrived already is not sent twice."
)


class HubError(OSError):
    """An upload that the Hub, the network or the files themselves did not allow; the message says the way out."""


@contextmanager
def explained(repo_id: str, what: str) -> Iterator[None]:
    """Turn the errors of `huggingface_hub` and of the network into a [`HubError`].

    Args:
        repo_id: the repository that is being worked on.
        what: what is being done, for the message: `"creating the repository"`.
    """
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        message = _explanation(error, repo_id, what)
        if message is None:
            raise
        raise HubError(message) from error


def _explanation(error: BaseException, repo_id: str, what: str) -> str | None:
    """A sentence for an error of the Hub; `None` for one that is a fault in the program."""
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        return f"The Hub refuses the card of {repo_id}. {_line(error)}. Correct the metadata at the top of README.md."
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, OfflineModeIsEnabled):
            return f"HF_HUB_OFFLINE is set: unset it to reach {repo_id}."
        if isinstance(cause, LocalTokenNotFoundError):
            return f"There is no token for {repo_id}: run `hf auth login`, or set HF_TOKEN to one that may write."
        if isinstance(cause, HFValidationError):
            return f"{repo_id!r} is no repository id: write `name` or `owner/name`. {cause}"
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            return _refusal(cause, repo_id, what)
    network = next((cause for cause in chain if _is_network(cause)), None)
    if network is not None:
        return f"The connection broke off while {what} {repo_id} ({_line(network)}). {NOTHING_VISIBLE}"
    return None


def _refusal(error: HfHubHTTPError, repo_id: str, what: str) -> str:
    status, said = error.response.status_code, error.response.headers.get("X-Error-Message") or _line(error)
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision: {said}. Push to a branch, `main` by default."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"The Hub shows no repository {repo_id} to this token: correct the name, or use a token of its owner if "
            "it is private."
        )
    if status == 401:
        return (
            f"The Hub refuses the token ({said}): make one with write access in your account's settings, and set "
            "HF_TOKEN to it or run `hf auth login`."
        )
    if status == 403:
        return (
            f"The token may not do this ({said}): use one with write access to {repo_id}, or push under your own name."
        )
    if status == 409:
        return f"{repo_id} is busy or has it already ({said}): choose another name, or try again."
    if status == 412:
        return (
            f"{repo_id} was changed by somebody else during the upload ({said}): look at it, then run the same "
            "command again."
        )
    if status == 429 or status >= 500:
        return f"The Hub cannot answer while {what} {repo_id} (status {status}: {said}). {NOTHING_VISIBLE}"
    return f"The Hub refused {what} {repo_id} (status {status}: {said})."


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it: `huggingface_hub` wraps the error of a large file's upload."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _is_network(error: BaseException) -> bool:
    # By the module's name: huggingface_hub has changed its HTTP library between minor versions.
    module = type(error).__module__
    return isinstance(error, (ConnectionError, TimeoutError)) or module.startswith(("httpx", "httpcore"))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
