"""Errors that a user can act on: each names the thing, the value and the remedy."""

from mlflow_scalpel.credentials import without_credentials


class ScalpelError(Exception):
    """Something the user can fix; its text is shown without a traceback, and holds no password."""

    def __init__(self, message: str = "") -> None:
        super().__init__(without_credentials(message))


class RecipeError(ScalpelError):
    """A recipe, or a field given with `set`, that cannot be run as it stands."""


class MissingPackage(ScalpelError):
    """A package that a plain install does not bring; the text says which extra does."""


class DiskFull(ScalpelError):
    """A disk of this machine is full, or its quota: the same may work once there is room."""
