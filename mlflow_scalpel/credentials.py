"""Keeps passwords out of what is written and shown. Imports nothing heavy.

URIs of tracking servers, registries, databases and artifact stores may hold a user's password, a
token or a signature, and exceptions of the libraries that open them quote them.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

HIDDEN = "***"
_URI_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_BACKEND_STORE_URI")
_USER_NAME, _PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_SECRET_VARIABLES = (_PASSWORD, "MLFLOW_TRACKING_TOKEN")
_SHORTEST = 8  # characters of a secret that is looked for by itself; a shorter one may be a word

# A tracking URI of which user and password were taken out, these, and what the user had set before.
_moved: tuple[str, Mapping[str, str | None], Mapping[str, str | None]] | None = None

# scheme://user:password@host. A password with a raw slash or question mark is no valid URI, and is
# quoted whole by whoever refuses it: what stands after `user:` is then not a port.
_USER = re.compile(
    r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.\-]*://)"
    r"(?:[^\s/?#\"'<>@]*(?:@[^\s/?#\"'<>@]*)*@"
    r"|[^\s/?#\"'<>@:]*:(?!\d*(?:[/?#,;.)]|$))[^\s\"'<>]*@)"
)
_PARAMETER = re.compile(
    r"(?P<name>(?<![\w\-])(?:x-(?:amz|goog|oss|ms)-(?:signature|credential|security-token)"
    r"|\w*(?:password|passwd)|pwd|sig|signature|token|access_token|auth_token|security_token"
    r"|api_?key|secret|client_secret|secret_key|awsaccesskeyid|odbc_connect))"
    r"(?P<equals>=)(?P<value>'[^']*'|[^\s&;,'\"<>)]+)",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"(?P<name>authorization\W{1,4}(?:basic|bearer)\s+)[A-Za-z0-9+/=._~\-]+", re.IGNORECASE
)


def without_credentials(text: str) -> str:
    """A text, or a URI, as anybody may read it: no user, password, token or signature.

    What identifies a place (scheme, host, port, path) stays.
    """
    for secret in _known_secrets():
        text = text.replace(secret, HIDDEN)
    text = _USER.sub(lambda found: found["scheme"], text)
    text = _PARAMETER.sub(lambda found: f"{found['name']}={HIDDEN}", text)
    return _HEADER.sub(lambda found: f"{found['name']}{HIDDEN}", text)


def shortened(error: object, limit: int) -> str:
    """What an error says on one line of `limit` characters at most, without credentials.

    These go first: half a URI is no longer seen to be one. What is cut is the middle, since the
    cause stands last in errors of HTTP.
    """
    text = " ".join(without_credentials(str(error)).split())
    if len(text) <= limit:
        return text
    tail = (limit - 5) // 3
    return f"{text[: limit - 5 - tail]} ... {text[-tail:]}"


def with_credentials(uri: str) -> str:
    """The URI to open for one that was stored without credentials.

    That is the tracking URI in use, where it names the same place. For others MLflow itself takes
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD: the user's own, and never those that
    belong to the tracking URI in use.
    """
    import mlflow

    if _moved is not None:
        place, of_place, of_others = _moved
        _set_environment(of_place if uri == place else of_others)
    current = str(mlflow.get_tracking_uri())
    return current if without_credentials(current) == without_credentials(uri) else uri


def move_to_environment() -> None:
    """Take user and password out of an HTTP tracking URI, to where MLflow looks for them.

    MLflow prints the URI with every run that ends. Done in processes that are ours, before MLflow
    is imported; the URI's own credentials win over those of the environment, as in requests.
    """
    global _moved
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        return
    parts = urlsplit(uri)
    if not parts.username or not parts.password:
        return
    place = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    own: dict[str, str | None] = {_USER_NAME: unquote(parts.username)}
    own[_PASSWORD] = unquote(parts.password)
    _moved = place, own, {name: os.environ.get(name) for name in own}
    _set_environment({**own, "MLFLOW_TRACKING_URI": place})
    if os.environ.get("MLFLOW_REGISTRY_URI") == uri:
        os.environ["MLFLOW_REGISTRY_URI"] = place


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def guard_output() -> None:
    """Have this process show tracebacks and log records without credentials."""
    sys.excepthook = _show_error
    threading.excepthook = lambda hit: (
        _show_error(hit.exc_type, hit.exc_value, hit.exc_traceback)
        if hit.exc_type is not SystemExit and hit.exc_value is not None
        else None
    )
    made = logging.getLogRecordFactory()
    if getattr(made, "guarded", False):
        return

    def record(*arguments: Any, **options: Any) -> logging.LogRecord:
        one = made(*arguments, **options)
        try:
            message = one.getMessage()
        except (TypeError, ValueError):  # which logging itself complains of
            return one
        if (stripped := without_credentials(message)) != message:
            one.msg, one.args = stripped, None
        if one.exc_info and one.exc_info[0] is not None:
            one.exc_text = without_credentials("".join(traceback.format_exception(*one.exc_info)))
        return one

    record.guarded = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)


def _show_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    lines = traceback.format_exception(kind, error, trace)
    print(without_credentials("".join(lines)), end="", file=sys.stderr)


def _known_secrets() -> list[str]:
    """Passwords and tokens of this process's settings, the longest first."""
    found = {os.environ.get(name, "") for name in _SECRET_VARIABLES}
    for name in _URI_VARIABLES:
        try:
            password = urlsplit(os.environ.get(name, "")).password or ""
        except ValueError:
            continue
        found |= {password, unquote(password)}
    return sorted((one for one in found if len(one) >= _SHORTEST), key=len, reverse=True)
