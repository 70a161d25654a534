"""Failures on the way to MLflow: final ones, those that pass by themselves, and their messages."""

from __future__ import annotations

import errno
import json

from mlflow_scalpel.credentials import shortened
from mlflow_scalpel.errors import DiskFull, ScalpelError

_LONGEST = 400  # characters of the answer of MLflow, or of a proxy before it

# Answers that will be the same next time, if it is MLflow that gave them.
_FINAL_STATUS = (400, 404)
_FROM_TRANSPORT = "API request to"  # how MLflow's client begins errors that are not MLflow's answer
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
    """Raise ScalpelError where an error is not an answer to the request, such as a proxy's 502.

    To be called before an error is reported as "there is no such ...".
    """
    if is_of_mlflow(error) and not is_final(error):
        raise no_answer(error) from error


def no_answer(error: Exception) -> ScalpelError:
    """An error of MLflow or of the way to its server, with what to do."""
    import mlflow

    return ScalpelError(
        f"{mlflow.get_tracking_uri()}: gave no usable answer ({shortened(error, _LONGEST)}); "
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

    An answer is final only in MLflow's own form (JSON with an `error_code`): a proxy's own answer,
    such as a 404 while the server is redeployed, does not concern the entry.
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
        return error.response.status_code in _FINAL_STATUS and _is_from_mlflow(error.response)
    return isinstance(error, ScalpelError) and not isinstance(error, DiskFull)


def is_passing(error: BaseException) -> bool:
    """Whether work on local files failed for a reason that may go away by itself."""
    return isinstance(error, DiskFull) or (
        isinstance(error, OSError) and (error.errno is None or error.errno in _PASSING)
    )


def is_own(error: BaseException) -> bool:
    """Whether a failure looks like a fault of what is sent, and not of the way there.

    (An answer that is not the JSON that it should be is a ValueError, but the server's.)
    """
    import requests

    own = ValueError | TypeError | LookupError | AttributeError | RecursionError
    gone = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
    of_the_way = requests.RequestException | json.JSONDecodeError
    return isinstance(error, own | gone) and not isinstance(error, of_the_way)


def _is_from_mlflow(response: object) -> bool:
    try:
        answer = response.json()  # type: ignore[attr-defined]
    except ValueError:
        return False
    return isinstance(answer, dict) and "error_code" in answer
