"""Gold answers that cannot be read as mathematics: counted, with a pattern that would do."""

from __future__ import annotations

import json
import re

import pytest

from mlflow_scalpel.data.sources import load
from mlflow_scalpel.errors import ScalpelError
from mlflow_scalpel.evaluation.grading.unreadable import readable_golds
from mlflow_scalpel.evaluation.suite import SuiteTask
from mlflow_scalpel.evaluation.tasks import data_warnings, one_type_a_column, task_rows
from mlflow_scalpel.recipes.fields import Data

PROSE = "the sum of both"
NEEDS = ("problem", "answer")


def data_of(tmp_path, answers: list[str], solution: str | None = None, **fields) -> Data:
    rows = [
        {"problem": f"{n}?", "answer": answer, "solution": solution}
        for n, answer in enumerate(answers)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Data(file=f"{tmp_path}/a.jsonl", **fields)


def judged(data: Data):
    return readable_golds(load(data, needs=NEEDS), data)


def test_readable_golds_pass_without_a_word(tmp_path):
    data = data_of(tmp_path, ["7", r"\frac{1}{2}", "$x=3$", r"so it is \boxed{4}"])
    loaded, warning = judged(data)
    assert (len(loaded.rows), warning, loaded.account.line()) == (4, None, None)


@pytest.mark.parametrize(
    ("answer", "gold", "number"),
    [
        ("We add {0} and 4, which gives <<{0}+4=1>>.\n#### {0}", "{0}", 6),
        ("Some long words come first.\n#### {0},000", "{0},000", 6),
        ("We find it by adding. The answer is: {0}", "{0}", 6),
        ("We find it. The final answer is $\\frac{{1}}{{{0}}}$.", "$\\frac{{1}}{{{0}}}$", 6),
    ],
)
def test_all_unreadable_is_refused_with_a_pattern_that_works(tmp_path, answer, gold, number):
    texts = [answer.format(n) for n in range(2, 2 + number)]
    for drop in (False, True):
        with pytest.raises(ScalpelError, match="6 of 6 gold answers cannot be read") as error:
            judged(data_of(tmp_path, texts, drop_unreadable=drop))
    assert "the first is line 1" in str(error.value)
    pattern = re.search(r"answer_pattern = '(.+)'", str(error.value))[1]
    loaded, warning = judged(data_of(tmp_path, texts, answer_pattern=pattern))
    assert warning is None
    assert [row["answer"] for row in loaded.rows] == [gold.format(n) for n in range(2, 2 + number)]


def test_a_column_with_boxes_is_proposed(tmp_path):
    data = data_of(tmp_path, [PROSE] * 3, solution=r"Adding gives \boxed{7}.")
    with pytest.raises(ScalpelError, match=r"set data\.columns\.answer = solution"):
        judged(data)


def test_half_unreadable_is_warned_of_and_more_is_refused(tmp_path):
    loaded, warning = judged(data_of(tmp_path, ["7", PROSE, "9", PROSE]))
    assert len(loaded.rows) == 4
    assert "2 of 4 gold answers cannot be read as mathematics" in str(warning)
    assert f"the first is line 2: '{PROSE}'" in str(warning)
    with pytest.raises(ScalpelError, match=r"3 of 4 .*max_unreadable above 0\.75"):
        judged(data_of(tmp_path, ["7", PROSE, PROSE, PROSE]))
    with pytest.raises(ScalpelError, match="1 of 4"):
        judged(data_of(tmp_path, ["7", "8", "9", PROSE], max_unreadable=0.1))
    assert judged(data_of(tmp_path, ["7", PROSE, PROSE, PROSE], max_unreadable=0.8))[1]


def test_unreadable_rows_can_be_left_out_and_are_counted(tmp_path):
    loaded, warning = judged(data_of(tmp_path, ["7", PROSE, PROSE, PROSE], drop_unreadable=True))
    assert warning is None
    assert [row["answer"] for row in loaded.rows] == ["7"]
    assert loaded.places == ["line 1"]
    assert loaded.account.dropped["unreadable_golds"] == 3
    assert "1 of 4 rows kept; 3 have a gold answer that is not" in str(loaded.account.line())


def test_a_pattern_that_matches_nothing_in_some_rows_is_told(tmp_path):
    answers = ["it is\n#### 7", "no mark in 8", "#### 9", "#### 10"]
    data = data_of(tmp_path, answers, answer_pattern=r"####\s*(.+)")
    loaded, warning = judged(data)
    assert [row["answer"] for row in loaded.rows] == ["7", "", "9", "10"]
    assert "1 of 4 gold answers" in str(warning)
    assert "in 1 of them answer_pattern finds nothing" in str(warning)
    assert "'no mark in 8'" in str(warning)


def entry(data: Data, **fields) -> SuiteTask:
    generation = {"max_new_tokens": 8}
    return SuiteTask(
        task="t", label="l", domain="in", kind="greedy", data=data, generation=generation, **fields
    )


def test_data_of_a_suite_is_looked_at_where_mathematics_is_graded(tmp_path):
    data = data_of(tmp_path, ["7", PROSE, "9"])
    assert task_rows(entry(data, metric="exact_match")).warnings == []
    found = task_rows(entry(data, grader="math_verify"))
    assert (len(found.rows), "earlier_turns" in found.rows[0]) == (3, False)
    assert "1 of 3 gold answers" in found.warnings[0]
    said = data_of(tmp_path, ["the sum is 7", "the sum is 8"])
    assert task_rows(entry(said, grader="math_verify", gold_pattern=r"is (\d+)")).warnings == []
    with pytest.raises(ScalpelError, match="2 of 2"):
        task_rows(entry(said, grader="math_verify"))


def test_evaluation_asks_one_question(tmp_path):
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "3+4="}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"m": turns, "answer": "7"}))
    data = Data(file=f"{tmp_path}/a.jsonl", columns={"messages": "m"})
    with pytest.raises(ScalpelError, match=r"'3.4=' has 1 turns before it"):
        task_rows(entry(data, metric="exact_match"))


def test_columns_of_several_types_reach_arrow():
    rows = [{"a": 1, "b": 10**40, "c": "x"}, {"a": "x", "b": None, "c": None}]
    assert one_type_a_column(rows) == [
        {"a": "1", "b": str(10**40), "c": "x"},
        {"a": "x", "b": None, "c": None},
    ]


def test_warnings_of_a_suite_are_one(tmp_path):
    from mlflow_scalpel.evaluation.suite import Suite

    bad = entry(data_of(tmp_path, ["7", PROSE, "9"]), grader="math_verify")
    other = bad.model_copy(update={"kind": "again"})
    said, unreadable = data_warnings(Suite(name="s", tasks=[bad, other]))
    assert str(said).count("1 of 3 gold answers") == 1
    assert unreadable == {bad.metric_name: 1, other.metric_name: 1}


def test_what_a_task_leaves_out_is_told(tmp_path, capsys):
    from mlflow_scalpel.evaluation.suite import Suite

    data = data_of(tmp_path, ["7", PROSE, PROSE], drop_unreadable=True)
    said, unreadable = data_warnings(Suite(name="s", tasks=[entry(data, grader="math_verify")]))
    assert "eval/in/l/greedy: data: 1 of 3 rows kept" in capsys.readouterr().out
    assert "only 1 of the 3 rows" in str(said)
    assert not any(unreadable.values())


def test_a_pattern_that_leads_nowhere_is_to_be_corrected(tmp_path):
    data = data_of(tmp_path, ["we add\n#### 7", "and\n#### 8"], answer_pattern=r"(none)")
    with pytest.raises(ScalpelError, match=r"2 of 2 .*correct data.answer_pattern = '\(none\)'"):
        judged(data)
