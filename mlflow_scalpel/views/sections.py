"""The sections of the report and of pages: headings, and how to read what stands under them.

Which figures stand in a section is declared at the figures (`@view`), and its table at the table's
function (`@section_table`).
"""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from mlflow_scalpel.views.common.view import Placement, View, figures_in, table_in


@dataclass(frozen=True)
class Section:
    """A heading, and how to read what stands under it."""

    stem: str
    heading: str
    how: str

    @property
    def figures(self) -> dict[str, Placement]:
        """Its figures by file stem, in their order."""
        return figures_in(self.stem)

    @property
    def table(self) -> View[[], Markup] | None:
        """Its table, where it has one."""
        return table_in(self.stem)

    @property
    def groups(self) -> set[str]:
        """The groups of the metrics that its figures require."""
        return {group for one in self.figures.values() for group in one.groups}


#: In the order of the report.
SECTIONS = (
    Section(
        "card",
        "Scalpel or hammer?",
        "Where each run lies on six axes, beside the other arms and what was imported. There is "
        "no sum and no threshold: a run may be fine on one axis and coarse on another. An open "
        "mark decides nothing by itself, since its interval includes 0 or is unknown, or a KL "
        "is not above the noise floor of its dtype; intervals and tests are over problems, and "
        "say nothing of other seeds. The table says what each point rests on.",
    ),
    Section(
        "weights",
        "How far the weights moved",
        "Each line is one kind of matrix: the size of its update relative to its size at the "
        "base, averaged over layers. AdamW moves every entry by about the learning rate at each "
        "step, so these norms mostly compare learning rates and steps. Divided by the sum of "
        "the learning rates so far (relative_frobenius_per_lr) they do so far less; what an "
        "algorithm does to norms shows best between runs of equal rate and steps. Means are "
        "over the matrices of the layers; the last figure has all parts, and what share of the "
        "parameters each of them is.",
    ),
    Section(
        "where",
        "Where the weights moved",
        "A cell is one matrix of one layer. On one scale for all runs the brighter run moved "
        "further; on a scale for each run the pattern within it shows.",
    ),
    Section(
        "update",
        "What the updates are like",
        "How far each layer moved, averaged over its matrices. By how many units in the last "
        "place elements moved, and which elements moved, by their size in the base: steps "
        "smaller than half a unit in the last place of a large weight are lost in rounding, and "
        "a change of sign is the largest move, since most numbers of the format lie near 0. "
        "Stable and effective rank say in how many directions an update goes; a random one has "
        "nearly full rank. The cosine says whether two runs from one base went the same way, "
        "and the overlap whether they changed the same elements more often than chance.",
    ),
    Section(
        "attention",
        "Whether heads attend elsewhere",
        "Jensen-Shannon divergence between the attention of base and checkpoint, a cell a head. "
        "Norms of query and key weights cannot say this: some models normalise both. The other "
        "metrics are changes from the base: of the entropy of what a head looks at, of the "
        "weight on the first token, and of how many tokens back it looks.",
    ),
    Section(
        "kl",
        "How far the output distribution moved",
        "KL from the base to each checkpoint, over the full vocabulary, on texts fixed in "
        "advance. The same checkpoint has another KL on other texts, so compare runs within a "
        "panel.",
    ),
    Section(
        "divergence",
        "Where the output distribution moved",
        "KL on what the base itself would say is the one that was found to go with forgetting "
        "(arXiv 2509.04259). The other figures take KL apart: its quantiles over tokens, by "
        "position in the text, by how sure the base was, and whether a few tokens carry it "
        "(Gini coefficient near 1) or all alike (near 0).",
    ),
    Section(
        "paper",
        "As the paper computes it",
        "The same norm and KL computed in bfloat16, as arXiv 2507.10616 does, beside ours: how "
        "far they part is what rounding adds to the published numbers.",
    ),
    Section(
        "scores",
        "What was gained and lost",
        "Accuracy by skill, at the base and at the last evaluated checkpoint, then over "
        "training. Skills count as in-domain or out-of-domain as their suite declares. Bars "
        "that overlap do not show that two runs are the same.",
    ),
    Section(
        "in_versus_out",
        "Gained in-domain against lost elsewhere",
        "Each line is a run's way from the base: right is better in-domain, down is worse "
        "out-of-domain. A last point whose bars reach a zero line shows no change in that "
        "direction beyond the noise of the problems sampled.",
    ),
    Section(
        "capabilities",
        "Which problems: kept, lost, gained, never solved",
        "By the first sample of base and checkpoint. One sample per problem changes by chance "
        "too: the short marks say how much of what was lost and gained the base would show "
        "against itself. With several samples, pass@k asks whether one of k is right: where the "
        "base is ahead at large k, training sharpened what was there. Of the gained problems, "
        "those that the base solved at least once in its k samples were there before; unsolved "
        "in k is not unsolvable.",
    ),
    Section(
        "ablations",
        "What freezing did",
        "Runs of one algorithm that trained only a part of the weights, beside those that "
        "trained all. Frozen means that not one bit differs from the base, at any checkpoint: "
        "the table says whether that was so.",
    ),
    Section(
        "cost",
        "What it cost",
        "Totals up to each run's last step. Equal steps are not equal cost.",
    ),
)

#: What stands on pages only: the report has findings and differences above and below its sections.
PAGE_SECTIONS = (
    Section(
        "cell",
        "One matrix over training",
        "Click a cell of the map, or choose a layer and a matrix.",
    ),
    Section(
        "findings",
        "What the numbers say",
        "Intervals of 95 % and tests are over problems, not over seeds. A paired change has the "
        "exact sign-flip test of the changes of single problems, and its interval includes 0 "
        "where and only where p is above 0.05; an unpaired one takes the two evaluations as "
        "independent. \u00b1 of a KL is 1.96 standard errors. P values are not corrected for "
        "their number.",
    ),
    Section(
        "confounders",
        "In what the runs differ",
        "Every recorded parameter and count in which the runs differ, and the five that always "
        "count. In bold is what the comparison is not about: a difference in results can come "
        "from any of these rows.",
    ),
)


def section(stem: str) -> Section:
    """The section of that stem."""
    return next(one for one in (*SECTIONS, *PAGE_SECTIONS) if one.stem == stem)
