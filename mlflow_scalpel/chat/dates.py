"""The date that chat templates write: a stated one, not today's.

Templates such as those of Llama 3.2, gpt-oss and SmolLM3 write the current date by calling
`strftime_now`, a function of Transformers: then the same conversation is another text tomorrow. A
macro of that name in front of the template hides the function; nothing of Transformers is changed.
"""

from __future__ import annotations

import datetime
import re

from mlflow_scalpel.recipes.fields import TEMPLATE_DATE

DEFAULT_DATE = TEMPLATE_DATE

_CLOCK = re.compile(r"\bstrftime_now\b")
_STATED = re.compile(r"\bdate_string\b")
_LLAMA = "%d %b %Y"  # the form in which Llama's templates take `date_string`
_DIRECTIVES = "aAwdbBmyYHIpMSfjUWcxXGuVFTDeRhs"
_PERCENT = "\ue000"  # stands for %% while directives are replaced


def writes_date(template: str) -> bool:
    """Whether a template asks for the current date."""
    return _CLOCK.search(template) is not None


def dated(template: str, date: datetime.date) -> str:
    """The template with every date that it writes fixed to `date`, at midnight.

    One that writes no date stays as it is; one that takes a `date_string`, and has a constant of
    its own for it, is given the date where that is not the default.
    """
    head = ""
    if writes_date(template):
        head = "{% macro strftime_now(format) %}" + _formatted(date) + "{% endmacro %}\n"
    elif date != DEFAULT_DATE and _STATED.search(template):
        stated = date.strftime(_LLAMA)
        head = "{% if date_string is not defined %}{% set date_string = '"
        head += stated + "' %}{% endif %}\n"
    return head + template  # Jinja drops the line break after a block, so nothing is added


def _formatted(date: datetime.date) -> str:
    """A Jinja expression that formats `date` by the directives in `format`."""
    moment = datetime.datetime.combine(date, datetime.time())
    steps = [f"replace('%%', '{_PERCENT}')"]
    for directive in [*_DIRECTIVES, *(f"-{one}" for one in "dmHIMSjy")]:
        steps.append(f"replace('%{directive}', '{moment.strftime('%' + directive)}')")
    steps.append(f"replace('{_PERCENT}', '%')")
    return "{{ format | " + " | ".join(steps) + " }}"
