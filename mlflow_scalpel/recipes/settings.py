"""What `set` carries, and how YAML is read: nothing that a user wrote is lost or changed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from mlflow_scalpel.errors import RecipeError

BY_RUN = "-P set="  # how a field is given to `mlflow run`
BY_COMMAND = "--set "  # and to a command of ours

_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+",
    "tag:yaml.org,2002:float": r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}  # as in YAML 1.2's JSON schema: 004 is a code, and its zeros would be lost
_WORDS = {*_NUMBERS, "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"}


_MOST_NODES = 100_000  # values of a document, each alias counted as what it stands for
_DEEPEST = 50  # lists and mappings in each other
_MOST_DIGITS = 18  # of a whole number, as 64 bits hold it


class Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error (the second would win in silence), `1e-5` is a
    number, and `10:50` is text, not 650 as YAML 1.1 has it.

    Raises YAMLError, and nothing else, for what cannot be read: also for a document whose aliases
    stand for more than anybody would write, that contains itself, or that is nested too deeply.
    """

    def get_single_data(self) -> Any:
        try:
            return super().get_single_data()
        except yaml.YAMLError:
            raise
        except RecursionError as error:
            raise yaml.YAMLError("it is nested too deeply") from error
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            # of a value that its explicit tag does not fit
            raise yaml.YAMLError(f"a value is not what its tag says ({error})") from error

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _measure(node, {})
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _MOST_DIGITS:
            raise yaml.constructor.ConstructorError(
                None,
                None,
                f"a number has {len(node.value)} digits; a text is quoted",
                node.start_mark,
            )
        return super().construct_yaml_int(node)

    # PyYAML keeps, by first character, which pattern makes a plain word something else than text.
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag not in _NUMBERS]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is a list or a mapping and no word", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> Any:
        value = super().construct_yaml_float(node)
        # 12e4567 may be the start of a commit's hash; what is meant to be infinite says inf.
        return node.value if math.isinf(value) and "inf" not in node.value.lower() else value


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Values of a node, aliases written out, and how deep it is nested; raises YAMLError."""
    if id(node) in known:
        measured = known[id(node)]
        if measured is None:
            raise yaml.YAMLError(f"a value contains itself{node.start_mark}")
        return measured
    known[id(node)] = None
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        inner = [one for pair in node.value for one in pair]
    found = [_measure(one, known) for one in inner]
    count = 1 + sum(values for values, _ in found)
    depth = 1 + max((deep for _, deep in found), default=0)
    if count > _MOST_NODES:
        raise yaml.YAMLError(f"its aliases stand for more than {_MOST_NODES} values")
    if depth > _DEEPEST:
        raise yaml.YAMLError(f"it is nested more than {_DEEPEST} times")
    known[id(node)] = count, depth
    return count, depth


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_yaml_float)
for _tag, _pattern in _NUMBERS.items():
    Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `Loader`, or a reader of YAML 1.1, would take for something else."""


for _tag, _pattern in _NUMBERS.items():
    _Dumper.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), list("-+.0123456789"))


def dump(fields: dict[str, Any]) -> str:
    """Fields as YAML that `Loader` reads as they are: the text `1e5` comes back as a text."""
    return yaml.dump(fields, Dumper=_Dumper, allow_unicode=True, sort_keys=False)


def split_field(dotted: str) -> list[str]:
    """The names in `train.max_steps`; of a reward, `package.module:function` is one name."""
    first, _, rest = dotted.partition(".")
    if first != "rewards" or ":" not in rest:
        return dotted.split(".")
    module, _, rest = rest.partition(":")
    function, *inner = rest.split(".")
    return [first, f"{module}:{function}", *inner]


def parse_settings(text: str, option: str = BY_RUN) -> dict[str, Any]:
    """Read `a.b=1 c=[x, y] d='any text'`, given by `option`, as dotted names and values.

    A value that begins with a quote is text, whatever stands in it; any other one is YAML, of which
    only lists, mappings and plain words are taken (`&x`, `*x`, `!x` and `#` are text). Quotes
    around field and value hold them together, and leave the value YAML. Of a field given
    twice the last counts. Raises RecipeError.
    """
    settings: dict[str, Any] = {}
    for field, value, is_text in _words(text, option):
        try:
            settings[field] = value if is_text else _plain_value(value)
        except yaml.YAMLError as error:
            why = " ".join(str(error).split())
            raise RecipeError(
                f"set = {text}: the value of {field} is not YAML ({why}); put quotes around a text "
                f"({field}='...'), and around field and value that hold blanks ('{field}=[a, b]')."
            ) from error
    return settings


_PIECE = re.compile(
    r"""(?P<blank>\s+)|'(?P<single>[^']*)'|"(?P<double>(?:\\.|[^"\\])*)"|\\(?P<escaped>[\s'"\\])"""
    r"""|(?P<bare>[^\s'"\\]+|\\)""",
    re.DOTALL,
)


def _words(text: str, option: str) -> Iterator[tuple[str, str, bool]]:
    """Field, value, and whether the value was quoted as text, of each FIELD=VALUE.

    Quotes are a shell's, but a backslash outside of them stays where it hides no blank, quote or
    backslash: `\\d` is a part of many patterns.
    """
    pieces: list[tuple[str, str, str]] = []  # kind, text, text as it was written
    place = 0
    while place <= len(text):
        found = _PIECE.match(text, place)
        if found is None and place < len(text):
            raise RecipeError(
                f"set = {text}: no closing quotation of {text[place : place + 20]!r}; quote values "
                "that hold blanks or quotes."
            )
        kind = str(found.lastgroup) if found else "blank"
        if kind != "blank" and found is not None:
            inner = found[kind]
            if kind == "double":
                inner = re.sub(r'\\(["\\])', r"\1", inner)
            pieces.append((kind, inner, found[0]))
        elif pieces:
            yield _field_and_value(pieces, text, option)
            pieces = []
        place = found.end() if found else len(text) + 1


def _field_and_value(
    pieces: list[tuple[str, str, str]], text: str, option: str
) -> tuple[str, str, bool]:
    word = "".join(inner for _, inner, _ in pieces)
    field, equals, value = word.partition("=")
    if not equals or not field:
        raise RecipeError(
            f"set = {text}: {word!r} is not FIELD=VALUE; write for example "
            f'{option}"train.learning_rate=1e-5 train.max_steps=50".'
        )
    kind, head, _ = pieces[0]
    if kind != "bare" or "=" not in head:
        return field, value, False  # the quotes hold field and value together
    begin = head.partition("=")[2]
    is_text = not begin and len(pieces) > 1 and pieces[1][0] in ("single", "double")
    if begin.startswith(("[", "{")):  # the quotes in a list are YAML's
        value = begin + "".join(written for _, _, written in pieces[1:])
    return field, value, is_text


def _plain_value(value: str) -> Any:
    """A list, a mapping or a quoted text as YAML has it, or a word: a number, true, null, text."""
    value = value.strip()
    if value.startswith('"'):
        try:
            return json.loads(value)  # as an experiment gives it to its stages
        except ValueError:
            pass
    if value.startswith(("[", "{", "'", '"')):
        return yaml.load(value, Loader)
    tag = Loader("").resolve(yaml.ScalarNode, value, (True, False))
    return yaml.load(value, Loader) if tag in _WORDS else value
