"""What packaging, MLproject and imports promise."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from mlflow_scalpel.extras import PACKAGES
from mlflow_scalpel.runs.resume import RESUMABLE

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "trl", "lm_eval", "plotly", "numba", "matplotlib")


def test_importing_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import mlflow, mlflow_scalpel"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "mlflow_scalpel" in imported
    assert not imported & set(HEAVY)


def test_public_names_are_found_where_they_are_said_to_be():
    import mlflow_scalpel

    for name in mlflow_scalpel.__all__:
        assert getattr(mlflow_scalpel, name)


def test_the_package_of_checkpoints_lists_them(tracking):
    import mlflow_scalpel

    assert list(mlflow_scalpel.list_checkpoints().columns[:3]) == ["algorithm", "recipe", "step"]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(*extras: str) -> list[str]:
    """The plain install's, and those of the extras; an extra that is part of another one apart."""
    optional = project()["optional-dependencies"]
    found = [*project()["dependencies"], *(one for extra in extras for one in optional[extra])]
    return [one for one in found if not one.startswith("mlflow-scalpel[")]


def import_name(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0].replace("-", "_").lower()


def test_conda_yaml_lists_what_pyproject_needs():
    environment = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    listed = next(entry["pip"] for entry in environment if isinstance(entry, dict))
    assert "python=3.11" in environment  # what MLflow's conversion for uv keeps
    assert listed[0] == "-e ."
    assert listed[1:] == requirements("measure", "eval", "train", "png", "vllm")


def test_constraints_pin_every_dependency():
    pinned = {
        import_name(line)
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    needed = requirements("measure", "eval", "train", "png", "docs", "dev")
    assert {import_name(one) for one in needed} <= pinned


def test_what_is_looked_for_of_an_extra_is_what_it_installs():
    optional = project()["optional-dependencies"]
    inner = {"measure": [], "eval": ["measure"], "train": ["eval", "measure"], "png": []}
    assert set(PACKAGES) == set(inner)
    for extra, others in inner.items():
        named = {one for one in optional[extra] if one.startswith("mlflow-scalpel[")}
        assert named == {f"mlflow-scalpel[{one}]" for one in others[:1]}
        installed = {import_name(one) for one in requirements(extra, *others)}
        plain = {import_name(one) for one in requirements()}
        assert set(PACKAGES[extra]) == installed - plain


def test_every_entry_point_takes_recipe_and_set_and_training_resume():
    declared = yaml.safe_load((ROOT / "MLproject").read_text())
    stages = {"main", "base", "sft", "grpo", "evaluate", "compare"}
    assert set(declared["entry_points"]) == stages
    for stage, entry in declared["entry_points"].items():
        resumable = {"resume"} if stage in RESUMABLE else set()
        assert set(entry["parameters"]) == {"recipe", "set"} | resumable
        assert (ROOT / "projects" / stage / f"{stage}.py").is_file()


def test_every_dependency_says_what_it_is_for():
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    for line in block.splitlines():
        if line.strip().startswith('"'):
            assert re.search(r'",\s+# \w', line), line


def test_what_the_stages_and_benchmarks_import_is_there():
    """Their imports stand in functions, where nobody else would see that a name has moved."""
    for file in (*ROOT.glob("projects/**/*.py"), *ROOT.glob("benchmarks/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "mlflow_scalpel"
            ):
                module = importlib.import_module(str(node.module))
                for one in node.names:
                    there = hasattr(module, one.name) or importlib.util.find_spec(
                        f"{node.module}.{one.name}"
                    )
                    assert there, f"{file.relative_to(ROOT)}: {node.module}.{one.name}"
