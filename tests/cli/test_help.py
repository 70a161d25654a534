"""`--help` of every command, its example, and completion in a shell."""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import subprocess
import sys
import time

import pytest

from mlflow_scalpel.cli import build_parser, main


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (
        one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction)
    )
    return action.choices


@pytest.mark.parametrize("name", commands())
def test_help_ends_with_an_example_that_the_parser_takes(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    example = text[text.index("example:\n") + len("example:\n") :]
    lines = example.replace("\\\n", " ").splitlines()
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "mlflow-scalpel"
        assert build_parser().parse_args(arguments).command == name


@pytest.mark.parametrize("name", commands())
def test_every_argument_has_a_help_text(name):
    for action in commands()[name]._actions:
        assert action.help, action.dest


def test_help_imports_nothing_heavy_and_takes_under_half_a_second():
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mlflow_scalpel.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    elapsed = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Under load the processor's time is what counts: it is never longer than what one waits.
    busy = used.ru_utime + used.ru_stime - spent.ru_utime - spent.ru_stime
    assert min(elapsed, busy) < 0.5
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "mlflow_scalpel" in imported
    assert not imported & {"mlflow", "torch", "transformers", "pandas", "numpy", "plotly"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mlflow-scalpel che", {"check", "checkpoints"}),
        ("mlflow-scalpel log out --li", {"--link"}),
        ("mlflow-scalpel log out --link ", {"reflink", "hard", "copy"}),
    ],
)
def test_completion(line, expected, tmp_path):
    pytest.importorskip("argcomplete")
    found = tmp_path / "completions"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(found),
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
        "IFS": "\n",
    }
    code = "from mlflow_scalpel.cli import main; main()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | asked, check=True)
    assert {one.strip() for one in found.read_text().splitlines()} == expected
