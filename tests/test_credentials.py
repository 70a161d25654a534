"""No password in what is written or shown."""

from __future__ import annotations

import os

import pytest

from mlflow_scalpel.credentials import move_to_environment, shortened, without_credentials
from mlflow_scalpel.errors import ScalpelError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:hunter2@host:5000/mlflow", "http://host:5000/mlflow"),
        ("https://hunter2@host", "https://host"),
        ("postgresql+psycopg2://u:hunter2@/db?host=/run", "postgresql+psycopg2:///db?host=/run"),
        ("mysql://u:hun@ter2@host:3306/db", "mysql://host:3306/db"),
        ("Failed to parse: http://user:hun/ter2@host", "Failed to parse: http://host"),
        ("Failed to parse: 'http://user:hun?ter2#@host:80/x'", "Failed to parse: 'http://host:80/x'"),
        ("s3://key:hunter2@bucket/a@b", "s3://bucket/a@b"),
        (
            "GET https://b.s3.amazonaws.com/k?X-Amz-Expires=9&X-Amz-Signature=hunter2&x=1: 403",
            "GET https://b.s3.amazonaws.com/k?X-Amz-Expires=9&X-Amz-Signature=***&x=1: 403",
        ),
        (
            "Max retries exceeded with url: /c/blob?sp=r&sig=hunter2%3D (Caused by",
            "Max retries exceeded with url: /c/blob?sp=r&sig=*** (Caused by",
        ),
        ("postgresql://h/db?user=u&password=hunter2", "postgresql://h/db?user=u&password=***"),
        ("host=h password=hunter2 dbname=d", "host=h password=*** dbname=d"),
        ("{'Authorization': 'Basic aHVudGVyMg=='}", "{'Authorization': 'Basic ***'}"),
        ("a http://u:hunter2@h/x, b http://v:hunter2@h/y", "a http://h/x, b http://h/y"),
    ],
)  # fmt: skip
def test_what_is_secret_goes(text, shown):
    assert without_credentials(text) == shown
    assert str(ScalpelError(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////home/a@b/mlflow.db",
        "https://host:8443/org/name@main",
        "http://[::1]:5000/",
        "models:/m-1@last",
        "org/name@revision: there is no such model",
        "http://127.0.0.1:5000/scalpel/overview?runs=a,b",
        "max_tokens=5 token_id=7 token: x",
        "mlflow-artifacts:/1/models/m-2/artifacts",
    ],
)
def test_all_else_stays(text):
    assert without_credentials(text) == text


def test_a_known_password_goes_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:pass%20phrase@host")
    assert without_credentials("pass phrase, pass%20phrase") == "***, ***"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:mlflow@host")
    assert without_credentials("mlflow-scalpel upload") == "mlflow-scalpel upload"


def test_a_process_of_ours_takes_them_out_of_the_tracking_uri(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://us%40er:hun%2Fter2@host:5000/mlflow")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "another")
    move_to_environment()
    assert os.environ["MLFLOW_TRACKING_URI"] == "https://host:5000/mlflow"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "us@er"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "hun/ter2"


@pytest.mark.parametrize("cut", [40, 60, 300, 700])
def test_a_long_token_is_out_before_an_error_is_cut(cut):
    token = "eyJ" + "b4Xq" * 200
    url = f"http://user:{token}@host:5000/api/2.0/mlflow/runs/get"
    error = OSError(f"API request to {url} failed:\n Max retries of /{'a' * 300} (Caused by 502)")

    shown = shortened(error, cut)

    assert len(shown) <= cut
    assert "b4Xq" not in shown
    assert shown.endswith(" by 502)")
