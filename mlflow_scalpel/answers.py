"""What a command says where MLflow gave no answer to go by, which is not "there is no such run"."""

from __future__ import annotations

from mlflow_scalpel.credentials import shortened
from mlflow_scalpel.errors import ScalpelError

_LONGEST = 400  # characters of what MLflow, or a proxy before it, said


def check_answered(error: Exception) -> None:
    """Raise ScalpelError where an error is no answer to what was asked, such as a 502 of a proxy.

    To be called before an error is told as "there is no such ...".
    """
    from mlflow_scalpel.checkpoints.lanes import is_final

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
