"""Scalpel or hammer? Several axes, no single number, and no threshold."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from mlflow_scalpel.views.bars import error_bars, negated
from mlflow_scalpel.views.capabilities import CHANCE_COLOUR, STATUS_LOOKS
from mlflow_scalpel.views.card_points import (
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
from mlflow_scalpel.views.confounding import FIRST, text_of
from mlflow_scalpel.views.scores import scores
from mlflow_scalpel.views.style import (
    LINE_COLOUR,
    NARROW,
    TEXT_COLOUR,
    Run,
    column_of,
    esc,
    filled,
    hover,
    isolated,
    nothing,
    panels,
    styles,
    unbroken,
)
from mlflow_scalpel.views.tidy import read

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


def points(
    table: pd.DataFrame, runs: pd.DataFrame | None = None
) -> tuple[list[Run], dict[str, dict[str, Point]], dict[str, Balance]]:
    """The runs, their points by axis and run ID, and their balances of lost against gained."""
    clean = read(table)
    looks = styles(clean, runs)
    rows = scores(clean)
    dtypes = dtypes_of(clean)
    read_as: dict[str, Callable[[Run], Point]] = {
        "gain": lambda run: accuracy_change(clean, rows, run, runs, "in"),
        "loss": lambda run: accuracy_change(clean, rows, run, runs, "out"),
        "kl": lambda run: of_first(clean, run, runs, KL_BASES, "KL", "nats/token"),
        "gini": lambda run: of_first(clean, run, runs, GINI_BASES, "The concentration of KL", ""),
        "norm": lambda run: norm(clean, run, runs, dtypes),
    }
    shown = list(looks.values())
    found = {key: {run.run_id: how(run) for run in shown} for key, how in read_as.items()}
    balances = {run.run_id: balance(clean, run, runs) for run in shown}
    # All p values of the card are one family.
    tests = sum(not math.isnan(point.p) for own in found.values() for point in own.values())
    tests += sum(one.shown for one in balances.values())
    found = {
        key: {run_id: replace(point, tests=tests) for run_id, point in own.items()}
        for key, own in found.items()
    }
    return shown, found, {i: replace(one, tests=tests) for i, one in balances.items()}


def dtypes_of(clean: pd.DataFrame) -> dict[str, str]:
    """The dtype of each run's norms, where the table says it."""
    norms = clean[(clean["metric"] == "weights/relative_frobenius") & (clean["dtype"] != "")]
    return dict(norms.groupby("run_id")["dtype"].last())


def card(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> go.Figure:
    """Where each run lies beside the others and the imported ones: a panel an axis, a row a run.

    In-domain gain; out-of-domain loss; KL from the base (on the base's own samples where that was
    measured, else on answer tokens, else on all: said beside each point); its concentration (Gini
    coefficient over tokens); the mean relative norm with learning rate and dtype; problems lost
    against gained, each with what chance alone would give (mark: the numbers that no change gives
    in 95 % of cases). All at the last measured checkpoint, each with its 95 % interval. An open
    mark decides nothing by itself: its interval includes 0 or is unknown, or a KL is not above the
    noise floor of its dtype. No sum of the axes is made, and no line says where a scalpel ends.

    Raises ValueError if columns are missing.
    """
    shown, found, balances = points(table, runs)
    some = any(point.known for own in found.values() for point in own.values())
    if not some and not any(one.n > 0 for one in balances.values()):
        return nothing(TITLE, "This table has no scores, no KL and no norms: compare and evaluate.")
    axes = [
        axis
        for axis in AXES
        if any(p.known for p in found.get(axis.key, {}).values())
        or (axis.key == "balance" and any(one.n > 0 for one in balances.values()))
    ]
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
    figure, listed = grid.figure, set[str]()
    rows = [run.label for run in reversed(shown)]  # upwards
    for axis, at in zip(axes, grid.at, strict=True):
        if axis.key == "balance":
            balance_panel(figure, at, shown, balances, listed)
        else:
            axis_panel(figure, at, axis, shown, found[axis.key])
        figure.update_yaxes(
            type="category",
            categoryorder="array",
            categoryarray=rows,
            range=[-0.5, len(rows) - 0.3],
            ticks="",
            showticklabels=at[1] == 1,
            row=at[0],
            col=at[1],
        )
        zero = {"zeroline": True, "zerolinecolor": LINE_COLOUR, "zerolinewidth": 1.5}
        figure.update_xaxes(
            title_text="<br>".join([axis.unit, *below[axis.key]]),
            dtick="D2" if axis.log else None,
            type="log" if axis.log else "linear",
            row=at[0],
            col=at[1],
            **(zero if axis.zero else {}),
        )
    if some_open:
        figure.add_trace(
            go.Scatter(x=[None], y=[rows[0]], mode="markers", name=CLAIM,
                       marker={"symbol": "circle-open", "size": 10, "color": TEXT_COLOUR},
                       meta={"panel": AXES[0].title, "series": CLAIM}),
            row=1, col=1,
        )  # fmt: skip
    figure.update_layout(barmode="overlay", bargap=0.55)
    return figure


def basis_lines(axis: Axis, own: dict[str, Point], width: int) -> list[str]:
    """What all points of an axis rest on, as at most three safe lines of so many characters."""
    lines = textwrap.wrap(
        shared_basis(axis, own), width, max_lines=3, placeholder="\u2026", break_on_hyphens=False
    )
    return [esc(line) for line in lines]


def axis_panel(
    figure: go.Figure, at: tuple[int, int], axis: Axis, shown: list[Run], own: dict[str, Point]
) -> None:
    """One mark a run, with its interval and what it rests on."""
    shared = shared_basis(axis, own)
    for run in shown:
        point = own[run.run_id]
        if not point.known or (axis.log and point.value <= 0):
            continue
        ends = [(point.low, point.high)]
        bars = error_bars([point.value], ends, thickness=1.5, width=5)
        decided = f"decides nothing by itself: {point.open}" if point.open else ""
        figure.add_trace(
            go.Scatter(
                x=[point.value],
                y=[run.label],
                error_x=bars,
                mode="markers" if shared else "markers+text",
                text=None if shared else [esc(point.basis, 34)],
                textposition="top center",
                textfont={"size": 11},
                cliponaxis=False,
                showlegend=False,
                marker={
                    "color": run.colour,
                    "symbol": "circle-open" if point.open else "circle",
                    "size": 11,
                    "line": {"width": 2, "color": run.colour},
                },
                line={"color": run.colour},
                customdata=[
                    hover(run.name, f"{axis.title}: {point.words()}", point.rests, decided)
                ],
                hovertemplate="%{customdata}<extra></extra>",
                meta={"panel": axis.title, "series": run.name},
            ),
            row=at[0],
            col=at[1],
        )
    room(figure, at, axis, [own[run.run_id] for run in shown])


def shared_basis(axis: Axis, own: dict[str, Point]) -> str:
    """What every point of an axis rests on, to stand once under it; "" where they differ."""
    bases = {point.basis for point in own.values() if point.known}
    return bases.pop() if len(bases) == 1 and axis.key != "norm" else ""


def room(figure: go.Figure, at: tuple[int, int], axis: Axis, own: list[Point]) -> None:
    """Leave the words beside the outermost points their room."""
    known = [p for p in own if p.known and (p.value > 0 or not axis.log)]
    if not known:
        return
    if axis.key == "gini":
        figure.update_xaxes(range=[0, 1], row=at[0], col=at[1])
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
    figure.update_xaxes(range=bounds, row=at[0], col=at[1])


def balance_panel(
    figure: go.Figure,
    at: tuple[int, int],
    shown: list[Run],
    balances: dict[str, Balance],
    listed: set[str],
) -> None:
    """Bars to the left for what was lost and to the right for what was gained, and chance."""
    known = [run for run in shown if balances[run.run_id].n > 0]
    said = [
        hover(run.name, balances[run.run_id].words(), balances[run.run_id].rests,
              balances[run.run_id].open and f"decides nothing: {balances[run.run_id].open}")
        for run in known
    ]  # fmt: skip
    for sign, name in ((-1, "lost"), (1, "gained")):
        shares = [getattr(balances[run.run_id], name) / balances[run.run_id].n for run in known]
        ends = [
            (low / balances[run.run_id].n, high / balances[run.run_id].n)
            for run in known
            for low, high in [balances[run.run_id].interval(name)]
        ]
        drawn = [sign * share for share in shares]
        bars = error_bars(drawn, ends if sign > 0 else negated(ends))
        figure.add_trace(
            go.Bar(
                x=drawn,
                y=[run.label for run in known],
                orientation="h",
                error_x=bars,
                name=name,
                legendgroup=name,
                showlegend=name not in listed,
                marker=filled(*STATUS_LOOKS[name]),
                customdata=said,
                hovertemplate="%{customdata}<extra></extra>",
                meta={"panel": BALANCE, "series": name},
            ),
            row=at[0],
            col=at[1],
        )
        listed.add(name)
        chances = [(run, balances[run.run_id]) for run in known if balances[run.run_id].chance > 0]
        if not chances:
            continue
        usual = [
            (low / one.n, high / one.n)
            for _, one in chances
            for low, high in [getattr(one, f"{name}_null")]
        ]
        middles = [sign * one.chance / one.n for _, one in chances]
        look = {"thickness": 1.5, "width": 4, "color": CHANCE_COLOUR}
        figure.add_trace(
            go.Scatter(
                x=middles,
                y=[run.label for run, _ in chances],
                error_x=error_bars(middles, usual if sign > 0 else negated(usual), **look),
                mode="markers",
                name=CHANCE,
                legendgroup=CHANCE,
                showlegend=CHANCE not in listed,
                marker={"symbol": "diamond", "size": 8, "color": CHANCE_COLOUR},
                customdata=[hover(run.name, one.words()) for run, one in chances],
                hovertemplate="%{customdata}<extra></extra>",
                meta={"panel": BALANCE, "series": f"{name} {CHANCE}"},
            ),
            row=at[0],
            col=at[1],
        )
        listed.add(CHANCE)
    figure.update_xaxes(tickformat=".0%", row=at[0], col=at[1])


def card_table(table: pd.DataFrame, runs: pd.DataFrame | None = None) -> Markup:
    """The card in words, as an HTML table: for each axis and run the value, what it rests on, and

    whether it decides anything; above them what the runs were trained with. All text is escaped.

    Raises ValueError if columns are missing.
    """
    shown, found, balances = points(table, runs)
    if not shown:
        return Markup("")
    head = Markup("").join(Markup("<th>{}</th>").format(isolated(run.name)) for run in shown)
    body = Markup("")
    for parameter in FIRST:
        said = [text_of(column_of(runs, run.run_id, parameter)) for run in shown]
        body += row_of(parameter, [isolated(text) for text in said], "given")
    for axis in AXES:
        own = balances if axis.key == "balance" else found[axis.key]
        cells = []
        for run in shown:
            point = own[run.run_id]
            basis = getattr(point, "basis", "")
            lead = f"{point.words()}{f' ({basis})' if axis.key == 'norm' and basis else ''}"
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
