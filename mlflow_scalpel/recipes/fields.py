"""Field types that every stage's recipe shares."""

from __future__ import annotations

import codecs
import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from mlflow_scalpel.recipes.places import seen_by_user, user_directory

TEMPLATE_DATE = date(2024, 7, 26)
"""What chat templates write for the current date: what Llama 3's own fall back to."""

Dtype = Literal["float32", "bfloat16", "float16"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Value = str | bool | int | float | None


class Strict(BaseModel):
    """Typed settings that refuse a field they do not know, and NaN for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Columns(Strict):
    r"""Which column of the data holds what.

    `messages.-1.content` reaches into lists and mappings, from the end with a negative number, and
    "{instruction}\n{input}" joins columns (a line that names only empty ones is left out).
    """

    problem: str | None = "problem"
    """The question put to the model; null takes it from `messages`."""
    answer: str | None = "answer"
    """The gold answer that rewards and graders compare with; null where there is none."""
    solution: str | None = "solution"
    """The worked solution that SFT learns from and KL is measured on; null where there is none."""
    messages: str | list[str] | None = None
    """Conversations, in TRL's form (`role`, `content`) or ShareGPT's (`from`, `value`): the last
    assistant turn is the solution, the user turn before it the problem, and the turns before those
    (a system turn too) are context, which is not learned. Several columns follow one another."""

    @model_validator(mode="after")
    def _one_problem(self) -> Columns:
        if self.messages is None:
            if self.problem is None:
                raise ValueError(
                    "problem is null, and messages too; name the column that holds the problems"
                )
            return self
        given = [
            name for name in ("problem", "solution") if getattr(self, name) not in (None, name)
        ]
        if given:
            raise ValueError(
                f"messages = {self.messages} holds problem and solution by role, and {given[0]} = "
                f"{getattr(self, given[0])} is given too; set one of them to null"
            )
        return self

    @field_validator("problem", "answer", "solution")
    @classmethod
    def _line_break(cls, value: str | None) -> str | None:
        if value is not None and re.search(r"\}\\n(?![A-Za-z])|\\n\{", value):
            raise ValueError(
                r"has a backslash and an n where a line break must be meant; in YAML write it in "
                "double quotes, on a command line as $'data.columns.problem=\"...\"'"
            )
        return value

    @property
    def solutions(self) -> str | None:
        """Where the solutions come from, in words; None where there are none."""
        if self.messages is None:
            return self.solution
        named = [self.messages] if isinstance(self.messages, str) else self.messages
        return f"last assistant turn of {' + '.join(named)}"


class Data(Strict):
    """Rows of problems, from exactly one of a hub dataset, a local file, or a generator."""

    hub: str | None = None
    """Name of a dataset on the Hugging Face hub."""
    config: str | None = None
    """Configuration of the hub dataset."""
    revision: str | None = None
    """Commit or tag of the hub dataset."""
    file: str | None = None
    """Path of a local .jsonl, .json, .csv, .tsv or .parquet file, relative to the directory in
    which the command was given; text may be compressed (.gz, .bz2, .zst)."""
    encoding: str | None = None
    """Encoding of the file, such as cp1252; null takes UTF-8, or what a byte order mark says."""
    generated: Literal["tiny_world"] | None = None
    """Name of a generator that is part of this project."""
    split: str = "train"
    """Split of the hub dataset or of the generator."""
    columns: Columns = Columns()
    where: dict[str, Value | list[Value]] = {}
    """Keep the rows whose column (or path) has this value, or one of these: text, number, true or
    false, or null. A number is also the text that it is written as."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the answer within the answer column."""
    max_unreadable: Fraction = 0.5
    """Largest share of gold answers that cannot be read as mathematics, where they are compared as
    such, with which a run begins: more, or all, is refused."""
    drop_unreadable: bool = False
    """Leave out, and count, rows that cannot be read: a conversation of another form, a row
    without what is needed, a gold answer that is not mathematics where it is compared as such."""
    rows: str | None = None
    """A slice of the rows, such as "0:1000" or "1000:", taken after `where`."""
    limit: PositiveInt | None = None
    """At most so many rows, drawn with `seed` after `rows`."""
    seed: int = 0

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        given = [name for name in ("hub", "file", "generated") if getattr(self, name)]
        if len(given) != 1:
            named = " and ".join(given) if given else "none"
            raise ValueError(
                f"exactly one of hub, file and generated must be given, but {named} is set; "
                "set the others to null"
            )
        return self

    @field_validator("rows")
    @classmethod
    def _slice(cls, value: str | None) -> str | None:
        if value is not None:
            parse_rows(value)
        return value

    @field_validator("answer_pattern")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        return check_pattern(value)

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                codecs.lookup(value)
            except LookupError as error:
                raise ValueError(
                    "is not an encoding; use for example utf-8, cp1252 or utf-16-le"
                ) from error
        return value

    def describe(self) -> str:
        """One line that names the source, for parameters and tables."""
        source = self.hub or self.file or f"generated:{self.generated}"
        parts = [source, self.split if not self.file else None, self.rows]
        return " ".join(part for part in parts if part)


def check_pattern(value: str | None) -> str | None:
    """The regular expression as it is; raises ValueError where it is not one, or has no group."""
    if value is not None:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        if groups < 1:
            raise ValueError("needs one group in parentheses that holds the answer")
    return value


def template_text(value: str) -> str:
    """The chat template that a field gives as it stands, or as the path of a file.

    Raises ValueError where it is neither.
    """
    if "{" in value:
        return value
    path = seen_by_user(value)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"is neither Jinja text, which has braces, nor a file that can be read ({error}; "
            f"looked for in {user_directory()})"
        ) from error
    if "{" not in text:
        raise ValueError(f"the file holds no Jinja template: it has no braces ({text[:60]!r})")
    return text


def parse_rows(text: str) -> slice:
    """Read "a:b" as a slice of rows; raises ValueError for anything else."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.strip().isdigit() or not part.strip() for part in parts):
        raise ValueError("is not a slice of rows such as 0:1000 or 1000:")
    start, stop = (int(part) if part.strip() else None for part in parts)
    return slice(start, stop)


class Recipe(Strict):
    """What every stage's recipe has."""

    stage: str
    """The entry point that this recipe is for."""
    name: str
    """Name of the recipe; the file's stem unless given."""
    description: str = ""
    """What the recipe is for, shown as the run's description."""
    threads: PositiveInt | None = None
    """CPU threads of torch; null leaves the choice to torch."""

    def flat(self) -> dict[str, Any]:
        """Every field as one flat dictionary with dotted names, as MLflow params want it."""
        return flatten(self.model_dump(mode="json"))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names; lists stay values."""
    if isinstance(value, dict) and value:
        return {
            name: leaf
            for key, inner in value.items()
            for name, leaf in flatten(inner, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: value}
