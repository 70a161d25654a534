"""What is too large to be computed, by structure."""

from __future__ import annotations

import time

import pytest

from mlflow_scalpel.evaluation.grading.computable import is_explosive

EXPLOSIVE = [
    "9^9^9",
    "9^{9^{9}}",
    "10^{10^{10}}",
    "9**9**9",
    r"\left(9^9\right)^{9^9}",
    "9^{-9^{9}}",
    r"9^{9\cdot 99999999}",
    "10^{99999999}",
    "99999999!",
    "((9!)!)!",
    "8!!",
    r"\binom{99999999}{4999999}",
    r"{10000001 \choose 5000000}",
    r"\dfrac{5^{\left(5^{\left(5^{\left(5^5\right)}\right)} - 4\right)} - 5}{16}",
    r"10^{(5^{5^{5^{5^{5}}} \cdot \log_{10}(5)} - 4)}",
    r"\frac{1}{10^{10^{9}}}",
    r"\sqrt{9^{9^9}}",
    r"\{1, 9^{9^9}\}",
    "x=9^{9^9}",
    "10^{1000000}x",
    "1" * 5000,
    "(" * 900,
    "{" * 900 + "}" * 900,
    "1+" * 3000 + "1",
]
COMPUTABLE = [
    "2^{2023}-1",
    "2023!",
    "10^{99999}",
    "10^{99999}+0",
    "5!!",
    "2^{2^{10}}",
    r"\frac{5^{10}}{6^{10}}",
    r"\frac{5^{10}}{6^{10}}+2^{10}3^{5}",
    r"1-\frac{35^{10}}{36^{10}}",
    r"\frac{2^{12}}{3^{11}}",
    r"\frac{1}{2004!}",
    r"\frac12^{30}",
    r"\frac{2^{2005}+1}{3\cdot2^{2006}}",
    r"\frac{10^{20}}{10^{-20}}",
    r"\binom{100}{50}",
    r"\binom{1000000}{2}",
    "x^{10^{10}}",
    "e^{10^9}",
    r"\sqrt[3]{2}^{9}",
    r"a_{10}^{99}",
    "1^{9^{9}}",
    "(2,3)^{5}",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
    "(0,1]",
    r"\frac{",
    "}^^{",
    "",
]


@pytest.mark.parametrize("text", EXPLOSIVE)
def test_explosive(text: str) -> None:
    started = time.process_time()
    assert is_explosive(text)
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize("text", COMPUTABLE)
def test_computable(text: str) -> None:
    assert not is_explosive(text)
