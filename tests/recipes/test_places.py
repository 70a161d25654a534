"""Relative paths: from where the user stands, also where MLflow starts the stage elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlflow_scalpel.cli import main
from mlflow_scalpel.errors import RecipeError
from mlflow_scalpel.recipes import load_recipe
from mlflow_scalpel.recipes.places import existing_file

PROJECTS = Path(__file__).parents[2] / "projects"
ARMS = (
    "compare=null 'arms=[{name: a, stage: sft, recipe: tiny, "
    "set: {data.generated: null, data.file: none.csv}}]'"
)
SHOW = "from mlflow_scalpel.recipes.places import user_directory; print(user_directory())"


@pytest.mark.parametrize("shell", [True, False])
@pytest.mark.parametrize("by_mlflow", [True, False])
def test_the_directory_is_that_of_the_command(tmp_path, shell, by_mlflow):
    """As MLflow does it: a process in `user` starts one in `project`, by way of bash."""
    user, project = tmp_path / "user", tmp_path / "project"
    user.mkdir()
    project.mkdir()
    command = f"{sys.executable} -c '{SHOW}'; true" if shell else [sys.executable, "-c", SHOW]
    words = ["bash", "-c", command] if shell else command
    starts = f"import subprocess; subprocess.run({words!r}, cwd={str(project)!r}, check=True)"
    env = {**os.environ, **({"MLFLOW_RUN_ID": "a" * 32} if by_mlflow else {})}
    said = subprocess.run(
        [sys.executable, "-c", starts], cwd=user, env=env, capture_output=True, text=True
    )
    assert said.stdout.strip() == str(user if by_mlflow else project), said.stderr


def test_recipe_data_and_model_are_seen_from_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALPEL_USER_DIRECTORY", str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "rows.jsonl").write_text("{}")
    text = (PROJECTS / "sft" / "recipes" / "tiny.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text)
    settings = "model=model data.generated=null data.file=rows.jsonl"
    recipe = load_recipe("mine.yaml", PROJECTS / "sft" / "recipes", stage="sft", settings=settings)
    assert recipe.model == str(tmp_path / "model")
    assert recipe.data.file == str(tmp_path / "rows.jsonl")
    assert existing_file("data.file", "rows.jsonl") == tmp_path / "rows.jsonl"
    with pytest.raises(RecipeError, match=f"data.file = none: there is no such file in {tmp_path}"):
        load_recipe(
            "mine.yaml",
            PROJECTS / "sft" / "recipes",
            stage="sft",
            settings="data.generated=null data.file=none",
        )
    with pytest.raises(RecipeError, match=f"seen from {tmp_path}"):
        load_recipe("other.yaml", PROJECTS / "sft" / "recipes", stage="sft")


@pytest.mark.parametrize(
    ("name", "settings", "field"),
    [
        ("sft/tiny", "data.generated=null data.file=none.jsonl", "data.file = none.jsonl"),
        (
            "sft/tiny",
            "probes.base_style.generated=null probes.base_style.file=none.csv",
            "probes.base_style.file",
        ),
        ("evaluate/tiny", "'data={add: {file: none.csv}}'", "add in the suite tiny = none.csv"),
        ("main/tiny", ARMS, "data.file = none.csv"),
    ],
)
def test_check_looks_whether_files_are_there(name, settings, field, monkeypatch, capsys):
    monkeypatch.chdir(PROJECTS.parent)
    assert main(["check", name, "--set", settings]) == 2
    said = capsys.readouterr().err
    assert field in said
    assert f"there is no such file in {PROJECTS.parent}" in said
