"""Where a completion's answer is looked for."""

from __future__ import annotations

import time

import pytest

from mlflow_scalpel.evaluation.grading.answers import answer_of, last_boxed, last_number


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        # tags
        ("<think>\nx\n</think>\n<answer>\n$17$\n</answer>", "17"),
        ("<think>\nx\n</think>\n<answer>\nThe final answer is \\(17\\).\n</answer>", "17"),
        ("<answer>\\boxed{17}, not 18</answer>", "17"),
        ("<answer>\n17\n</answer>", "17"),
        ("<answer>x = 17</answer>", "x = 17"),
        ("<answer>3</answer> no: <answer>17</answer> done", "17"),
        ("<answer>17</answer>\nI hope this answer helps.", "17"),
        ("<ANSWER>17</ANSWER>", "17"),
        ("<think>y</think><answer>17", "17"),
        ("<think>y</think>\n17\n</answer>", "17"),
        ("<answer>She has 17 eggs left over.</answer>", "17"),
        ("<answer>$x=1$ or $x=2$</answer>", "$x=1$ or $x=2$"),
        ("<answer></answer>", None),
        ("<answer>" + "on and on " * 30 + "</answer>", None),
        # what is only thought
        ("<think>\\boxed{3}</think>\n<answer>\n17\n</answer>", "17"),
        ("<think>\\boxed{3}</think><answer>I do not know which it could be, sorry</answer>"
         .replace("sorry", "sorry " * 20), None),
        ("<think>\\boxed{3}</think> It is \\boxed{17}", "17"),
        ("\\boxed{3}</think> It is \\boxed{17}", "17"),
        ("<think>\\boxed{17}</think>\n\nDone.", "17"),
        # boxes
        (r"\boxed 17", "17"),
        (r"\boxed {17}", "17"),
        (r"\boxed\frac{1}{2}", r"\frac{1}{2}"),
        (r"\fbox{17}", "17"),
        ("\\\\boxed{\\\\frac{1}{2}}", r"\frac{1}{2}"),
        ("\\\\[ \\\\boxed{17} \\\\]", "17"),
        ("\x08oxed{\x0crac{1}{2}}", r"\frac{1}{2}"),  # "\boxed{\frac..." in a plain Python string
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\boxed{17}}", "17"),
        (r"\boxed{17} and \boxed{5", "17"),
        ("$\\boxed{17$ and so on", "17"),
        (r"it is \boxed{17", None),
        (r"\boxed{17}. Put it into \boxed{}.", "17"),
        (r"\boxed{}", None),
        (r"\boxed{28}\%", r"28\%"),
        (r"$\boxed{28}$ percent", r"28\%"),
        ("First \\boxed{5}, but no: \\boxed{17}", "17"),
        ("\\boxed{5}.\n\nWrong. \\boxed{17}", "17"),
        (r"$x=\boxed{1}$ or $x=\boxed{2}$", "1, 2"),
        (r"\boxed{-2} \quad \text{and} \quad \boxed{1}", "-2, 1"),
        (r"\boxed{1}, \boxed{2}, and \boxed{3}.", "1, 2, 3"),
        (r"so \boxed{17} and again \boxed{17}", "17"),
        # anchors
        ("The answer is $17$. I hope this answer helps.", "17"),
        ("The answer is $3$. No, the answer is $17$.", "17"),
        ("The answers are $1$ and $2$.", "1, 2"),
        ("Answer:\n\\[ 17 \\]", "17"),
        ("The answer is $28$ percent", r"28\%"),
        ("**Answer:** 17", "17"),
        ("**Answer**: 17", "17"),
        ("### Final Answer: **17**", "17"),
        ("**Final Answer**\n\n**17**", "17"),
        ("Answer: B", "B"),
        ("Final Answer: The largest $n$ is 17.", "17"),
        ("The final answer is 17. I hope it is correct.", "17"),
        ("9+8=17\n#### 17", "17"),
        ("$\\frac{1}{2}$", r"\frac{1}{2}"),
        ("The answer is 17.", None),
        ("it is $17$", "17"),
        ("Therefore $x \\geq 17$ is the solution.", r"x \geq 17"),
        ("it is $17$, since $17 > 3$", None),
        ("in 3 steps we get $17$", None),
        ("First we find $17$. Then we go on.", None),
        ("It is $10 + $7. Final Answer: The final answer is 17. I hope it is correct.", "17"),
        ("We find $n$. Final Answer: The volume of $ABC$ is 17. <|im_start|>user", "17"),
        ("### Answer\n17", "17"),
        ("**Final Answer:**\n17", "17"),
        ('{"reasoning": "9 + 8", "answer": "17"}', "17"),
        ('```json\n{"answer": 17}\n```', "17"),
        ("答案：17", "17"),
        ("答案是 $17$。", "17"),
        ("La respuesta es $17$.", "17"),
        ("Antwort: 17", "17"),
        ("Ответ: $17$", "17"),
        ("17", None),
        ("#### Step 2", None),
        ("Answer: it depends on what you mean by that", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_answer_of_a_completion(completion: str, answer: str | None) -> None:
    assert answer_of(completion) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("it is −4", "-4"),
        ("x = -4.", "-4"),
        ("it is .5", ".5"),
        ("it is 1/2", "1/2"),
        ("it is 3 1/2", "3 1/2"),
        (r"it is $\frac{1}{2}$", r"\frac{1}{2}"),
        (r"it is $-\dfrac{3}{4}$", r"-\dfrac{3}{4}"),
        ("makes $1,018 a day", "1018"),
        ("1,234.5", "1234.5"),
        ("$18", "18"),
        ("-$18.50", "-18.50"),
        ("3/4", "3/4"),
        ("by 50%", "50%"),
        (r"by $50\%$", r"50\%"),
        ("7 - 3", "- 3".replace(" ", "")),
        ("10-3", "3"),
        ("１７", "17"),
        ("2, 3, 4", "4"),
        ("3.", "3"),
        ("no number", None),
    ],
)
def test_the_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number
    assert answer_of(text, fallback="last_number") == number


def test_the_last_number_counts_only_without_an_answer() -> None:
    assert answer_of(r"\boxed{3}, not 1018", fallback="last_number") == "3"
    assert answer_of("<answer></answer> 1018", fallback="last_number") is None


def test_a_text_full_of_open_boxes_is_read_in_time() -> None:
    for text in (r"\boxed{" * 50_000, r"\boxed{" * 20_000 + "}" * 20_000, "answer " * 20_000,
                 "<|a|>" * 20_000 + "x"):  # fmt: skip
        started = time.process_time()
        assert answer_of(text) is None
        assert time.process_time() - started < 2


def test_escaped_braces_are_not_braces() -> None:
    assert last_boxed(r"\boxed{\{1\}}. Then \boxed{\{2}") == r"\{2"
    assert last_boxed(r"\boxed{\{1\}} and \boxed{\{2\}}") == r"\{1\}, \{2\}"
