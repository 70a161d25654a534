"""What an evaluation says while it goes on, where no terminal watches."""

from __future__ import annotations

import re

from mlflow_scalpel.evaluation import suite_lm as progress
from mlflow_scalpel.evaluation.suite_lm import bar_about
from tests.evaluation.test_evaluator import CHOICE, TASKS, build, task, write_rows  # noqa: F401


def test_a_line_now_and_then(capsys, monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.Lines, "_time", lambda self: next(clock), raising=False)
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    bar = bar_about("step 40, MATH-500")(total=1000, desc="Processed prompts")
    for _ in range(20):
        bar.update(50)
    bar.close()
    lines = capsys.readouterr().out.splitlines()
    assert 4 <= len(lines) <= 12
    assert lines[-1] == "step 40, MATH-500: 1,000 of 1,000 answers"
    said = r"step 40, MATH-500: \d+ of 1,000 answers, [\d.]+ a second, (\d\d:)?\d\d:\d\d left"
    assert all(re.fullmatch(said, line) for line in lines[:-1])


def test_what_is_soon_done_says_nothing(capsys):
    with bar_about("step 40")(total=10) as bar:
        bar.update(10)
    assert capsys.readouterr() == ("", "")


def test_each_way_of_asking_is_told_and_none_leaves_a_bar_in_a_log(
    build,  # noqa: F811
    tmp_path,
    capsys,
    monkeypatch,
):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    (tmp_path / "choice.yaml").write_text(CHOICE)
    for file in TASKS.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())
    rows = [{"problem": f"{i}+1=?", "answer": "A"} for i in range(6)]
    choice = task(
        task="choice",
        label="pick",
        metric="acc",
        generation=None,
        data=write_rows(tmp_path / "rows.jsonl", rows),
    )
    evaluator = build(task(limit=20), choice, folder=tmp_path, batch_size=8)
    capsys.readouterr()
    evaluator.run(title="step 40")
    said, errors = capsys.readouterr()
    assert "step 40, add: 8 of 20 answers, " in said
    assert "step 40, add: 20 of 20 answers" in said
    assert re.search(r"step 40, pick: \d+ of 18 answers", said)
    assert errors == ""
