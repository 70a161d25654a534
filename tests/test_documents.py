"""What one reads is true: commands parse, Python runs, recipes are valid, links lead somewhere.

A block that cannot run here stands behind a comment `<!-- not run: WHY -->`.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import yaml

import mlflow_scalpel
from mlflow_scalpel import views
from mlflow_scalpel.cli import build_parser, main
from mlflow_scalpel.comparison.run_store import log_comparison
from mlflow_scalpel.comparison.table import DTYPES
from mlflow_scalpel.recipes.load import read_recipe
from mlflow_scalpel.recipes.settings import BY_COMMAND, parse_settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = {
    DOCS / "reference" / name for name in ("commands.md", "metrics.md", "recipes.md", "views.md")
}
PAGES = sorted({*DOCS.rglob("*.md")} - GENERATED)
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *PAGES]
NOT_RUN = "<!-- not run: "


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and whether it can run here."""

    file: Path
    line: int
    language: str
    text: str
    runs: bool

    def __str__(self) -> str:
        return f"{name_of(self.file)}:{self.line}"


def blocks(file: Path, *languages: str) -> list[Block]:
    found: list[Block] = []
    lines = file.read_text().splitlines()
    opened = None
    for number, line in enumerate(lines):
        if opened is None and line.startswith("```"):
            opened = number
        elif opened is not None and line == "```":
            language = lines[opened].removeprefix("```")
            text = "\n".join(lines[opened + 1 : number]) + "\n"
            runs = not (opened and lines[opened - 1].startswith(NOT_RUN))
            found.append(Block(file, opened + 2, language, text, runs))
            opened = None
    assert opened is None, f"{name_of(file)}:{opened}: the block has no end"
    return [block for block in found if block.language in languages]


def every(*languages: str) -> list[Block]:
    return [block for file in DOCUMENTS for block in blocks(file, *languages)]


# Shell


def check_mlflow_run(words: list[str]) -> None:
    """The entry point and its parameters are there, the recipe is found, the fields can be set."""
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    stage = words[words.index("-e") + 1] if "-e" in words else "main"
    given = [words[number + 1] for number, word in enumerate(words) if word == "-P"]
    parameters = dict(one.split("=", 1) for one in given)
    assert set(parameters) <= set(entry_points[stage]["parameters"])
    recipe = parameters.get("recipe", "tiny")
    settings = parse_settings(parameters.get("set", ""), BY_COMMAND)
    file = ROOT / "projects" / stage / "recipes" / f"{recipe}.yaml"
    assert read_recipe(file, settings=settings, option=BY_COMMAND).stage == stage


def check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for word in words:
        for wanted in re.findall(r"\[(.*)\]", word):
            assert set(wanted.split(",")) <= set(extras)


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    assert set(words[1:]) <= set(targets)


def check_server(words: list[str]) -> None:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert words[words.index("--app-name") + 1] in points["mlflow.app"]


def check_line(line: str) -> None:
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "mlflow-scalpel":
        build_parser().parse_args(words[1:])
    elif words[0] == "make":
        check_make(words)
    elif words[:3] == ["mlflow", "run", "."]:
        check_mlflow_run(words)
    elif words[:2] == ["mlflow", "server"]:
        check_server(words)
    elif words[:2] == ["pip", "install"]:
        check_pip(words)
    else:
        raise AssertionError("no check knows this command")


@pytest.mark.parametrize("block", every("sh"), ids=str)
def test_commands_are_as_the_parser_takes_them(block):
    for line in block.text.replace("\\\n", " ").splitlines():
        if not block.runs:
            continue
        try:
            check_line(line)
        except (SystemExit, ValueError, AssertionError, KeyError) as error:
            pytest.fail(f"{block}: {line}: {error!r}")


# Recipes


@pytest.mark.parametrize("block", every("yaml"), ids=str)
def test_recipes_are_valid(block, tmp_path):
    if not block.text.startswith("extends:") or not block.runs:
        assert yaml.safe_load(block.text)
        return
    stage = block.text.split()[1].partition("/")[0]
    file = tmp_path / "projects" / stage / "recipes" / "mine.yaml"
    shutil.copytree(ROOT / "projects", tmp_path / "projects")
    file.write_text(block.text)
    assert read_recipe(file, settings={}, option=BY_COMMAND).stage == stage


# Python


@pytest.fixture
def names(
    tracking: str,
    first_model: Path,
    make_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, str]:
    """What documents call things, and what they are in a store with a base and two checkpoints."""
    import plotly.graph_objects as go

    from mlflow_scalpel.checkpoints.logging.uploads import all_sent

    monkeypatch.setattr(go.Figure, "show", lambda figure: None)
    checkpoint = Path("out/checkpoint-100")
    shutil.copytree(make_model(2), checkpoint)
    Path("problems.jsonl").write_text('{"problem": "1+1=?", "solution": "2"}\n')
    mlflow.set_experiment("scalpel-demo")
    with mlflow.start_run(run_name="sft") as run, all_sent():
        mlflow_scalpel.log_base(str(first_model), register_as="tiny-base")
        uploads = [
            mlflow_scalpel.log_checkpoint(
                checkpoint, step=20, base=str(first_model), register_as=model, name=model
            )
            for model in ("tiny-sft", "tiny-grpo")
        ]
    for upload in uploads:
        model_id = upload.wait().model_id
        mlflow.MlflowClient().log_metric(
            run.info.run_id, "eval/in/add/greedy", 0.5, step=20, model_id=model_id
        )
    table = mlflow_scalpel.compare(str(first_model), [f"runs:/{run.info.run_id}"])
    log_comparison(table)
    return {
        "RUN_ID": run.info.run_id,
        "org/name": str(first_model),
        "models:/tiny-sft/20": "models:/tiny-sft/1",
        "models:/tiny-grpo/20": "models:/tiny-grpo/1",
        "--layers 3-5": "--layers 0-1",  # of two
    }


def run_python(block: Block, text: str, namespace: dict[str, object]) -> None:
    exec(compile("\n" * (block.line - 1) + text, str(block), "exec"), namespace)


def run_commands(block: Block, text: str) -> None:
    """Run the commands of a block that end by themselves and need no hub."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["mlflow-scalpel"] and words[1] not in ("plan", "ui", "watch"):
            assert main(words[1:]) == 0, f"{block}: {line}"


@pytest.mark.slow
def test_documents_run(names):
    """The blocks of each document one after the other, as one would paste them.

    Python of all; of README and tutorial the commands too.
    """
    for file in DOCUMENTS:
        namespace: dict[str, object] = {}
        for block in blocks(file, "python", "sh"):
            text = block.text
            for name, value in names.items():
                text = text.replace(name, value)
            if block.runs and block.language == "python":
                run_python(block, text, namespace)
            elif block.runs and file in (ROOT / "README.md", DOCS / "tutorial" / "demo.md"):
                run_commands(block, text)


@pytest.mark.parametrize("block", every("python"), ids=str)
def test_what_python_imports_of_the_package_is_there(block):
    """Also in blocks that are not run."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("mlflow_scalpel"):
            module = importlib.import_module(str(node.module))
            for one in node.names:
                if not hasattr(module, one.name):
                    importlib.import_module(f"{node.module}.{one.name}")


# Links and lists


def anchors(file: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings]
    return {re.sub(r"[ \-]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("file", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(file):
    text = re.sub(r"```.*?```|`[^`]*`", "", file.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        where = (file.parent / path).resolve() if path else file
        assert where.exists() or where in GENERATED, f"{name_of(file)}: {target}"
        if anchor and where not in GENERATED:
            assert anchor in anchors(where), f"{name_of(file)}: {target}"


def test_the_table_of_views_names_what_is_there():
    page = (DOCS / "how-to" / "pages-and-reports.md").read_text()
    lines = page[page.index("| `mlflow_scalpel.views.`") :].splitlines()[2:]
    first = [line.split("|")[1] for line in lines if line.startswith("|")]
    named = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert len(named) > 20
    assert named <= set(dir(views))


def test_files_that_documents_name_are_there():
    """Paths of this repository in backticks; what is in capitals stands for a name."""
    for file in DOCUMENTS:
        text = re.sub(r"```.*?```", "", file.read_text(), flags=re.S)
        for path in re.findall(
            r"`((?:mlflow_scalpel|projects|tests|benchmarks|docs)/[^`\s]*)`", text
        ):
            if not re.search(r"[A-Z*{]", path):
                assert (ROOT / path).exists(), f"{name_of(file)}: {path}"
    for file in (*ROOT.glob("mlflow_scalpel/**/*.py"), *ROOT.glob("tests/**/*.py")):
        for path in re.findall(r"\bdocs/[\w/-]+\.md", file.read_text()):
            assert (ROOT / path).exists(), f"{name_of(file)}: {path}"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    for page in (*PAGES, *GENERATED):
        assert f" {page.relative_to(DOCS).as_posix()}\n" in text, page


def test_every_page_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    for page in PAGES:
        assert page == DOCS / "index.md" or f"]({name_of(page)})" in text, page


def test_the_readme_and_contributing_are_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 120


def test_the_page_on_the_table_has_its_columns():
    page = (DOCS / "reference" / "table.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| (\w+) \|", page, flags=re.M) == list(DTYPES.items())


def test_the_page_on_runs_has_every_tag_and_file():
    page = (DOCS / "reference" / "runs.md").read_text()
    for file in (ROOT / "mlflow_scalpel").rglob("*.py"):
        for tag in re.findall(r'"(scalpel[./][a-z_./]+)"', file.read_text()):
            if not tag.endswith((".js", ".css")):
                assert f"`{tag}" in page, f"{tag} of {name_of(file)}"


# The site


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    for package in ("zensical", "mkdocstrings_handlers.python"):
        if importlib.util.find_spec(package.partition(".")[0]) is None:
            pytest.skip(f"{package} is not installed: pip install '.[docs]'")
    for name in ("docs", "mlflow_scalpel"):
        ignored = shutil.ignore_patterns("__pycache__", *(file.name for file in GENERATED))
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    made = [sys.executable, "docs/generate.py"]
    built = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    for command in (made, built):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in (done.stdout + done.stderr).lower()
    site = tmp_path / "build" / "site"
    assert 'id="compare"' in (site / "reference/commands/index.html").read_text()
    for page in site.rglob("*.html"):  # nothing of a page is loaded from elsewhere
        found = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="https?:', page.read_text())
        assert not found, page
