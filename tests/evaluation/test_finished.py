"""What is said of completions that did not end, and of prompts that left no room for them."""

from __future__ import annotations

import pandas as pd

from mlflow_scalpel.evaluation.harness import Score
from mlflow_scalpel.evaluation.results import crowded_words, unfinished_words


def rows(label: str, step: int, finished: list[bool | None]) -> pd.DataFrame:
    return pd.DataFrame({"label": label, "kind": "greedy", "step": step, "finished": finished})


def test_tasks_whose_completions_do_not_end_are_named_with_their_numbers():
    good = rows("sums", 0, [True, True, True, False])
    asked = rows("choice", 0, [None, None])  # compares likelihoods
    assert unfinished_words(pd.concat([good, asked])) is None
    assert unfinished_words(asked) is None
    none, half = rows("sums", 5, [False] * 4), rows("words", 5, [True, False])
    said = unfinished_words(pd.concat([good, none, half, asked]))
    assert said is not None
    assert "sums (greedy) at step 5: 0 of 4; words (greedy) at step 5: 1 of 2." in said
    assert "sums (greedy) at step 0" not in said
    assert "In some, none did" in said


def test_prompts_that_leave_too_little_of_the_context_are_counted():
    def score(crowded: int) -> Score:
        return Score("eval/in/sums/greedy", 1.0, 0.0, 9, 1, ungraded=1, crowded=crowded)

    assert crowded_words([(0, score(0))]) is None
    said = crowded_words([(0, score(3)), (5, score(3))])
    assert said is not None
    assert said.count("in/sums/greedy: 3 of 10 problems") == 1
