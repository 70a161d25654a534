"""The `mlflow-scalpel` command.

Each subcommand is a module here, named like it: its docstring is its help (the first line stands in
the list of commands), `EXAMPLE` what `--help` ends with, `add(parser)` declares the arguments and
`run(arguments)` returns the exit status. `EXTRA` names the extra that it needs, where a plain
install does not do. Nothing heavy is imported before `run`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys

from mlflow_scalpel import __version__
from mlflow_scalpel.credentials import guard_output, move_to_environment
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.extras import install_command, require_extra

_EXAMPLE = "example:\n"


class _Help(argparse.HelpFormatter):
    """Wraps each paragraph of a text; leaves the lines of an example as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith(_EXAMPLE):
            return text
        return "\n\n".join(
            super(_Help, self)._fill_text(p, width, indent) for p in paragraphs(text)
        )


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a docstring."""
    return [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command and all its subcommands."""
    parser = argparse.ArgumentParser(
        prog="mlflow-scalpel",
        description="Log, compare and report checkpoints of post-training, in the MLflow tracking "
        "server that MLFLOW_TRACKING_URI names.",
        epilog="`mlflow-scalpel COMMAND --help` explains a command, with an example.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in pkgutil.iter_modules(__path__):
        if module.name == "__main__":
            continue
        command = importlib.import_module(f"{__name__}.{module.name}")
        about, extra = str(command.__doc__), getattr(command, "EXTRA", None)
        first = paragraphs(about)[0].rstrip(".")
        if extra is not None:
            about += f"\n\nNeeds more than a plain install: {install_command(extra)}"
        subparser = subparsers.add_parser(
            module.name.rstrip("_"),  # `import` is a word of Python's
            help=first[0].lower() + first[1:],
            description=about,
            epilog=_EXAMPLE + "\n".join(f"  {line}" for line in command.EXAMPLE.splitlines()),
            formatter_class=_Help,
        )
        command.add(subparser)
        subparser.set_defaults(run=command.run, extra=extra)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the subcommand's exit status, or 2 where the input is refused."""
    parser = build_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks what could come next
        import argcomplete

        argcomplete.autocomplete(parser)
    arguments = parser.parse_args(argv)
    move_to_environment()
    guard_output()
    # MLflow's bar for each small table that is read; what takes long shows its own progress.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        if arguments.extra is not None:
            require_extra(arguments.extra, f"mlflow-scalpel {arguments.command}")
        return int(arguments.run(arguments))
    except ScalpelError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from mlflow_scalpel.server_errors import is_of_mlflow, no_answer

        if not is_of_mlflow(error):
            raise
        print(no_answer(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
