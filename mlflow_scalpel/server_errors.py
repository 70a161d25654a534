"""Failures on the way to MLflow: which are final, which pass by themselves, what users are told."""

from __future__ import annotations

import errno
import json

from mlflow_scalpel.credentials import shortened
from mlflow_scalpel.errors import DiskFull, ScalpelError

_LONGEST = 400  # characters of what MLflow, or a proxy before it, said

_FINAL_STATUS = (
    400,
    404,
)  # answers that will be the same next time, if it is MLflow that gave them
_FROM_TRANSPORT = "API request to"  # how MLflow's client begins what is no answer of MLflow's
# What reading or writing on this machine fails with for a while: trying again may help.
_PASSING = {
    getattr(errno, name)
    for name in (
        "ENOSPC EDQUOT EIO ESTALE ETIMEDOUT EMFILE ENFILE ENOMEM EAGAIN EINTR EBUSY EROFS "
        "ENOTCONN EHOSTDOWN EHOSTUNREACH ENETUNREACH EREMOTEIO"
    ).split()
    if hasattr(errno, name)
}


def check_answered(error: Exception) -> None:
    """Raise ScalpelError where an error is no answer to what was asked, such as a 502 of a proxy.

    To be called before an error is told as "there is no such ...".
    """
    if is_of_mlflow(error) and not is_final(error):
        raise no_answer(error) from error


def no_answer(error: Exception) -> ScalpelError:
    """An error of MLflow or of the way to its server, with what to do."""
    import mlflow

    return ScalpelError(
        f"{mlflow.get_tracking_uri()}: gave no answer to go by ({shortened(error, _LONGEST)}); "
        "see that MLFLOW_TRACKING_URI is right, that its server runs and lets you read this, and "
        "run it again"
    )


def is_of_mlflow(error: Exception) -> bool:
    """Whether an error came from MLflow or from the way to its server."""
    import requests
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException | requests.RequestException)


def is_final(error: BaseException) -> bool:
    """Whether a failure would be the same next time, so that trying again is in vain.

    An answer is final only in MLflow's own form (JSON with an `error_code`): what a proxy says of
    its own accord, a 404 while the server is redeployed, says nothing of the entry.
    """
    import requests
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, RestException):
        return "error_code" in error.json and error.get_http_status_code() in _FINAL_STATUS
    if isinstance(error, MlflowException):
        if str(error).startswith(_FROM_TRANSPORT):
            return False
        return error.get_http_status_code() in _FINAL_STATUS
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in _FINAL_STATUS and _is_mlflows(error.response)
    return isinstance(error, ScalpelError) and not isinstance(error, DiskFull)


def is_passing(error: BaseException) -> bool:
    """Whether work on local files failed for a reason that may go away by itself."""
    return isinstance(error, DiskFull) or (
        isinstance(error, OSError) and (error.errno is None or error.errno in _PASSING)
    )


def is_own(error: BaseException) -> bool:
    """Whether a failure looks like a fault of what is sent, and not of the way it is sent.

    (An answer that is not the JSON that it should be is a ValueError, but the server's.)
    """
    import requests

    own = ValueError | TypeError | LookupError | AttributeError | RecursionError
    gone = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
    foreign = requests.RequestException | json.JSONDecodeError
    return isinstance(error, own | gone) and not isinstance(error, foreign)


def _is_mlflows(response: object) -> bool:
    try:
        answer = response.json()  # type: ignore[attr-defined]
    except ValueError:
        return False
    return isinstance(answer, dict) and "error_code" in answer
