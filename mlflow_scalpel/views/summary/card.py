"""Scalpel or hammer? Several axes, no single number, and no threshold."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace

import plotly.graph_objects as go
from markupsafe import Markup

from mlflow_scalpel.views.capabilities.scores import CHANCE_COLOUR, STATUS_STYLES, score_rows
from mlflow_scalpel.views.common.panels import NARROW, Panel, empty_figure, panels
from mlflow_scalpel.views.common.style import LINE_COLOUR, TEXT_COLOUR, Run, filled
from mlflow_scalpel.views.common.table import Measurements
from mlflow_scalpel.views.common.text import esc, hover, isolated, unbroken
from mlflow_scalpel.views.common.traces import error_bars, negated
from mlflow_scalpel.views.common.view import COMPARE, EVALUATE, Placement, section_table, view
from mlflow_scalpel.views.summary.differences import FIRST, text_of
from mlflow_scalpel.views.summary.norms import mean_norms
from mlflow_scalpel.views.summary.points import (
    GINI_BASES,
    KL_BASES,
    MISSING,
    Balance,
    Point,
    accuracy_change,
    balance,
    norm,
    of_first,
)
from mlflow_scalpel.views.weights.norms import NORM, PER_RATE

TITLE = "Scalpel or hammer?"
BALANCE = "Problems lost against gained"
CHANCE = "by chance"
CLAIM = "decides nothing by itself (why: on hover)"


@dataclass(frozen=True)
class Axis:
    """One direction of the card: what is drawn, and how to read it."""

    key: str
    title: str
    unit: str
    reading: str
    log: bool = False
    zero: bool = False


AXES = (
    Axis("gain", "In-domain gain", "change of accuracy", "right: better where trained", zero=True),
    Axis("loss", "Out-of-domain loss", "fall of accuracy", "right: worse elsewhere", zero=True),
    Axis("kl", "KL from the base", "nats per token", "compare only on the same texts", log=True),
    Axis("gini", "Concentration of KL", "Gini coefficient", "0: every token alike, 1: one token"),
    Axis("norm", "Mean relative norm", "\u2016W\u209c \u2212 W\u2080\u2016 / \u2016W\u2080\u2016",
         "grows with the learning rate", log=True),
    Axis("balance", BALANCE, "share of problems", "left lost, right gained", zero=True),
)  # fmt: skip


@dataclass(frozen=True)
class Card:
    """The runs, their points by axis and run ID, and their balances of lost against gained."""

    runs: list[Run]
    points: dict[str, dict[str, Point]]
    balances: dict[str, Balance]

    def measured(self, axis: Axis) -> bool:
        """Whether any run has a value on an axis."""
        if axis.key == "balance":
            return any(one.n > 0 for one in self.balances.values())
        return any(point.known for point in self.points[axis.key].values())


def card_of(data: Measurements) -> Card:
    """The card of a table; all its p values are one family."""
    rows = score_rows(data)
    norms, rates = mean_norms(data, NORM), mean_norms(data, PER_RATE)
    dtypes = data.rows(NORM)
    dtypes = dtypes[dtypes["dtype"] != ""].groupby("run_id")["dtype"].last()
    read_as: dict[str, Callable[[str], Point]] = {
        "gain": lambda i: accuracy_change(data, rows, i, "in"),
        "loss": lambda i: accuracy_change(data, rows, i, "out"),
        "kl": lambda i: of_first(data, i, KL_BASES, "KL", "nats/token"),
        "gini": lambda i: of_first(data, i, GINI_BASES, "The concentration of KL", ""),
        "norm": lambda i: norm(data, i, norms.get(i), rates.get(i), dtypes.get(i, "not recorded")),
    }
    found = {key: {i: how(i) for i in data.styles} for key, how in read_as.items()}
    balances = {i: balance(data, i) for i in data.styles}
    tests = sum(not math.isnan(point.p) for own in found.values() for point in own.values())
    tests += sum(one.shown for one in balances.values())
    points = {
        key: {i: replace(point, tests=tests) for i, point in own.items()}
        for key, own in found.items()
    }
    balances = {i: replace(one, tests=tests) for i, one in balances.items()}
    return Card(list(data.styles.values()), points, balances)


@view(Placement("card", 1, "the card", "", f"{COMPARE}; {EVALUATE}"))
def card(data: Measurements) -> go.Figure:
    """Where each run lies beside the others and the imported ones: a panel per axis, a row per run.

    In-domain gain; out-of-domain loss; KL from the base (on the base's own samples where that was
    measured, else on answer tokens, else on all: said beside each point); its concentration (Gini
    coefficient over tokens); the mean relative norm with learning rate and dtype; problems lost
    against gained, each with what chance alone would give (mark: the numbers that no change gives
    in 95 % of cases). All at the last measured checkpoint, each with its 95 % interval. An open
    mark decides nothing by itself: its interval includes 0 or is unknown, or a KL is not above the
    noise floor of its dtype. No sum of the axes is made, and no line says where a scalpel ends.

    Raises ValueError if columns are missing.
    """
    made = card_of(data)
    shown, found, balances = made.runs, made.points, made.balances
    axes = [axis for axis in AXES if made.measured(axis)]
    if not axes:
        why = "This table has no scores, no KL and no norms: compare and evaluate."
        return empty_figure(TITLE, why)
    empty = [axis.title for axis in AXES if axis not in axes]
    longest = max(len(run.label) for run in shown)
    some_open = any(p.known and p.open for own in found.values() for p in own.values())
    some_chance = any(one.chance > 0 for one in balances.values())
    left = min(230, 30 + 8 * longest)
    characters = (NARROW - left) // 2 // 8  # of a line under a panel, on the narrowest page
    below = {axis.key: basis_lines(axis, found.get(axis.key, {}), characters) for axis in axes}
    more = 16 * max(0, *(len(lines) - 1 for lines in below.values()))
    grid = panels(
        [f"{axis.title}<br>{axis.reading}" for axis in axes],
        title=TITLE,
        names=[axis.title for axis in axes],
        subtitle="at the last measured checkpoint; bars: 95 % intervals over problems, "
        "not over seeds. Each axis by itself: there is no total and no threshold"
        + (f". Not measured for any run: {', '.join(empty)}" if empty else ""),
        columns=2,
        row_height=36 + 44 * len(shown),
        gap=112 + more,
        spacing=0.07,
        left=left,
        bottom=56 + more,
        legend=[*([CLAIM] if some_open else []), *([CHANCE] if some_chance else []),
                *(["lost", "gained"] if BALANCE not in empty else [])],
    )  # fmt: skip
    rows = [run.label for run in reversed(shown)]  # upwards
    for axis, panel in zip(axes, grid, strict=True):
        if axis.key == "balance":
            balance_panel(panel, shown, balances)
        else:
            axis_panel(panel, axis, shown, found[axis.key])
        panel.y(
            type="category",
            categoryorder="array",
            categoryarray=rows,
            range=[-0.5, len(rows) - 0.3],
            ticks="",
            showticklabels=panel.first,
        )
        zero = {"zeroline": True, "zerolinecolor": LINE_COLOUR, "zerolinewidth": 1.5}
        panel.x(
            title_text="<br>".join([axis.unit, *below[axis.key]]),
            dtick="D2" if axis.log else None,
            type="log" if axis.log else "linear",
            **(zero if axis.zero else {}),
        )
    if some_open:
        marker = {"symbol": "circle-open", "size": 10, "color": TEXT_COLOUR}
        none = go.Scatter(x=[None], y=[rows[0]], mode="markers", marker=marker)
        grid[0].add(none, [], series=CLAIM, name=CLAIM)
    grid.figure.update_layout(barmode="overlay", bargap=0.55)
    return grid.figure


def basis_lines(axis: Axis, own: dict[str, Point], width: int) -> list[str]:
    """What all points of an axis rest on, as at most three safe lines of so many characters."""
    lines = textwrap.wrap(
        shared_basis(axis, own), width, max_lines=3, placeholder="\u2026", break_on_hyphens=False
    )
    return [esc(line) for line in lines]


def axis_panel(panel: Panel, axis: Axis, shown: list[Run], own: dict[str, Point]) -> None:
    """One mark per run, with its interval and what it rests on."""
    shared = shared_basis(axis, own)
    for run in shown:
        point = own[run.run_id]
        if not point.known or (axis.log and point.value <= 0):
            continue
        decided = f"decides nothing by itself: {point.open}" if point.open else ""
        mark = go.Scatter(
            x=[point.value],
            y=[run.label],
            error_x=error_bars([point.value], [(point.low, point.high)], thickness=1.5, width=5),
            mode="markers" if shared else "markers+text",
            text=None if shared else [esc(point.basis, 34)],
            textposition="top center",
            textfont={"size": 11},
            cliponaxis=False,
            marker={
                "color": run.colour,
                "symbol": "circle-open" if point.open else "circle",
                "size": 11,
                "line": {"width": 2, "color": run.colour},
            },
            line={"color": run.colour},
        )
        text = hover(run.name, f"{axis.title}: {point.text()}", point.rests, decided)
        panel.add(mark, [text], series=run.name)
    leave_room(panel, axis, [own[run.run_id] for run in shown])


def shared_basis(axis: Axis, own: dict[str, Point]) -> str:
    """What every point of an axis rests on, to stand once under it; "" where they differ."""
    bases = {point.basis for point in own.values() if point.known}
    return bases.pop() if len(bases) == 1 and axis.key != "norm" else ""


def leave_room(panel: Panel, axis: Axis, own: list[Point]) -> None:
    """Leave the words beside the outermost points their room."""
    known = [p for p in own if p.known and (p.value > 0 or not axis.log)]
    if not known:
        return
    if axis.key == "gini":
        panel.x(range=[0, 1])
        return
    ends = [p.value if end != end else end for p in known for end in (p.low, p.high)]
    if axis.log:
        logs = [math.log10(end) for end in ends if end > 0]
        pad = max(0.4, 0.25 * (max(logs) - min(logs)))
        bounds = [min(logs) - pad, max(logs) + pad]
    else:
        low, high = min(0.0, *ends), max(0.0, *ends)
        pad = 0.25 * (high - low or 1.0)
        bounds = [low - pad, high + pad]
    panel.x(range=bounds)


def balance_panel(panel: Panel, shown: list[Run], balances: dict[str, Balance]) -> None:
    """Bars to the left for what was lost and to the right for what was gained, and chance."""
    known = [(run, balances[run.run_id]) for run in shown if balances[run.run_id].n > 0]
    by_chance = [(run, one) for run, one in known if one.chance > 0]
    text = [
        hover(run.name, one.text(), one.rests, one.open and f"decides nothing: {one.open}")
        for run, one in known
    ]
    for sign, name in ((-1, "lost"), (1, "gained")):
        shares = [sign * getattr(one, name) / one.n for _, one in known]
        ends = [
            (low / one.n, high / one.n) for _, one in known for low, high in [one.interval(name)]
        ]
        bars = go.Bar(
            x=shares,
            y=[run.label for run, _ in known],
            orientation="h",
            error_x=error_bars(shares, ends if sign > 0 else negated(ends)),
            marker=filled(*STATUS_STYLES[name]),
        )
        panel.add(bars, text, series=name, name=name)
        if not by_chance:
            continue
        usual = [
            (low / one.n, high / one.n)
            for _, one in by_chance
            for low, high in [getattr(one, f"{name}_null")]
        ]
        middles = [sign * one.chance / one.n for _, one in by_chance]
        style = {"thickness": 1.5, "width": 4, "color": CHANCE_COLOUR}
        marks = go.Scatter(
            x=middles,
            y=[run.label for run, _ in by_chance],
            error_x=error_bars(middles, usual if sign > 0 else negated(usual), **style),
            mode="markers",
            marker={"symbol": "diamond", "size": 8, "color": CHANCE_COLOUR},
        )
        chance_text = [hover(run.name, one.text()) for run, one in by_chance]
        panel.add(marks, chance_text, series=f"{name} {CHANCE}", name=CHANCE)
    panel.x(tickformat=".0%")


@section_table("card")
def card_table(data: Measurements) -> Markup:
    """The card in words, as an HTML table: for each axis and run the value, what it rests on, and

    whether it decides anything; above them what the runs were trained with. All text is escaped.

    Raises ValueError if columns are missing.
    """
    made = card_of(data)
    shown = made.runs
    if not shown:
        return Markup("")
    head = Markup("").join(Markup("<th>{}</th>").format(isolated(run.name)) for run in shown)
    body = Markup("")
    for parameter in FIRST:
        texts = [text_of(data.parameter(run.run_id, parameter)) for run in shown]
        body += row_of(parameter, [isolated(text) for text in texts], "given")
    for axis in AXES:
        own = made.balances if axis.key == "balance" else made.points[axis.key]
        cells = []
        for run in shown:
            point = own[run.run_id]
            basis = getattr(point, "basis", "")
            lead = f"{point.text()}{f' ({basis})' if axis.key == 'norm' and basis else ''}"
            rests = unbroken(point.rests)
            cell = Markup("<b>{}</b><br><span class='soft'>{}</span>").format(lead, rests)
            if point.open and point.open != MISSING:
                cell += Markup("<br><i>decides nothing: {}</i>").format(point.open)
            cells.append(cell)
        body += row_of(axis.title, cells, axis.key)
    return Markup(
        '<table class="axes"><thead><tr><th></th>{}</tr></thead><tbody>{}</tbody></table>'
    ).format(head, body)


def row_of(title: str, cells: list[Markup], name: str) -> Markup:
    """One row of the table; a measured axis of which all runs say the same says it once."""
    once = name != "given" and len(cells) > 1 and len(set(cells)) == 1
    inside = (
        Markup('<td colspan="{}">{}</td>').format(len(cells), cells[0])
        if once
        else Markup("").join(Markup("<td>{}</td>").format(cell) for cell in cells)
    )
    return Markup('<tr class="{}"><th>{}</th>{}</tr>').format(name, title, inside)
