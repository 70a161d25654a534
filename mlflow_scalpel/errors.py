"""Errors that a user can act on: each names the thing, the value and the remedy."""


class ScalpelError(Exception):
    """Something the user can mend; its text is shown without a traceback."""


class RecipeError(ScalpelError):
    """A recipe, or a field given with `set`, that cannot be run as it stands."""
