"""Tables from rows, in Markdown and LaTeX: the laid-out numbers of the paper's Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from codebrain.benchmark.rows import REGIONS, TASKS, Row
from codebrain.benchmark.summary import Given, Score, models_of, patterns_of, summarise
from codebrain.marks import RESEARCH_USE_ONLY
from codebrain.metrics import PRINTED_SCALE, PSNR_CAP_DB

UNITS = {"PSNR": "dB", "SSIM": "%", "MAE": "x1000"}
REGION_TITLES = {
    "slice": "Whole slices",
    "brain": "Inside the foreground only",
    "volume": "Whole volumes",
}
GIVENS: dict[Given, str] = {"any": "all", "one": "one present", "many": "several present"}
"""Which patterns a mean is over; the paper writes O->O for one and M->O for several present contrasts."""


@dataclass(frozen=True)
class Table:
    """Text cells under two rows of headings.

    Attributes:
        title: what the table shows.
        groups: heading and number of columns that it spans; the first column has none.
        columns: headings of all columns.
        body: rows of text.
        rule_before: rows of the body above which a line is drawn.
    """

    title: str
    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    rule_before: tuple[int, ...] = ()

    def markdown(self) -> str:
        """A pipe table, columns padded so that it reads well as plain text."""
        spanned = [self.columns[0]]
        names = [name for name, span in self.groups for _ in range(span)]
        spanned += [f"{name} {column}" for name, column in zip(names, self.columns[1:], strict=True)]
        lines = [tuple(spanned), *self.body]
        widths = [max(len(line[i]) for line in lines) for i in range(len(spanned))]
        rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths))
        text = ["| " + " | ".join(_pad(line, widths)) + " |" for line in lines]
        return "\n".join([f"**{self.title}**", "", text[0], rule + "|", *text[1:]]) + "\n"

    def latex(self) -> str:
        """A ``table`` for the booktabs package."""
        spans = " & ".join(rf"\multicolumn{{{span}}}{{c}}{{{_tex(name)}}}" for name, span in self.groups)
        rules, start = [], 2
        for _, span in self.groups:
            rules.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
            start += span
        body = []
        for i, line in enumerate(self.body):
            body += [r"\midrule"] if i in self.rule_before else []
            body.append(" & ".join(map(_tex, line)) + r" \\")
        return (
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{_tex(self.title)}}}",
                    rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
                    r"\toprule",
                    rf" & {spans} \\",
                    " ".join(rules),
                    " & ".join(map(_tex, self.columns)) + r" \\",
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
            + "\n"
        )


def _pad(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))]


_TEX = {
    **{character: f"\\{character}" for character in "&%_#${}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "–": "--",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def printed(score: Score | None, metric: str) -> str:
    """``24.31 ± 0.52`` in the paper's units; no spread with one patient, a dash without a score."""
    if score is None:
        return "–"
    scale = PRINTED_SCALE[metric]
    spread = "" if score.spread is None else f" ± {score.spread * scale:.2f}"
    return f"{score.mean * scale:.2f}{spread}"


def comparison(rows: Sequence[Row], *, region: str = "slice", task: str = "imputation") -> Table:
    """Models below each other: mean over all cells, over O->O, over M->O (the paper's Table 2)."""
    chosen = [row for row in rows if row.region == region and row.task == task]
    body = []
    for model in models_of(chosen):
        mine = [row for row in chosen if row.model == model]
        scores = [printed(summarise(mine, metric=m, given=g, region=region, task=task), m)
                  for g in GIVENS for m in UNITS]  # fmt: skip
        body.append((model, *scores))
    groups = tuple((name, len(UNITS)) for name in GIVENS.values())
    return Table(f"{REGION_TITLES[region]}, {task}", groups, ("Model", *list(UNITS) * len(GIVENS)), tuple(body))


def by_pattern(rows: Sequence[Row], model: str, *, region: str = "slice") -> Table:
    """One model's patterns, imputation and reconstruction side by side (the paper's Table 1)."""
    mine = [row for row in rows if row.model == model and row.region == region]
    tasks = [task for task in TASKS if any(row.task == task for row in mine)]

    def line(name: str, given: Given = "any", pattern: str | None = None) -> tuple[str, ...]:
        scores = [
            printed(summarise(mine, metric=m, task=t, region=region, given=given, pattern=pattern), m)
            for t in tasks
            for m in UNITS
        ]
        return (name, *scores)

    body = [line(pattern, pattern=pattern) for pattern in patterns_of(mine)]
    means = [line(f"mean, {name}", given) for given, name in GIVENS.items()]
    return Table(
        f"{model}: {REGION_TITLES[region].lower()}, by present contrasts",
        tuple((task, len(UNITS)) for task in tasks),
        ("Present", *list(UNITS) * len(tasks)),
        (*body, *means),
        rule_before=(len(body),),
    )


def all_tables(rows: Sequence[Row]) -> list[Table]:
    """Comparisons by region and task, then every model's patterns on whole slices."""
    found = {(row.region, row.task) for row in rows}
    compared = [comparison(rows, region=r, task=t) for r in REGIONS for t in TASKS if (r, t) in found]
    first = next(region for region in REGIONS if any(row.region == region for row in rows))
    return [*compared, *(by_pattern(rows, model, region=first) for model in models_of(rows))]


def notes(rows: Sequence[Row], *, split: str, middle: int | None = None) -> list[str]:
    """What a reader must know to compare the numbers with others."""
    patients, studies = (len({getattr(row, name) for row in rows}) for name in ("patient", "subject"))
    slices = sum({row.subject: row.n_slices for row in rows if row.region != "brain"}.values())
    which = "all slices" if middle is None else f"the middle {middle} slices"
    cells = {model: _cells([row for row in rows if row.model == model]) for model in models_of(rows)}
    counted = ", ".join((_count(patients, "patient"), _count(studies, "study"), _count(slices, "slice")))
    lines = [
        f"Split {split}: {counted}; {which} of each study of which the foreground covers at least 1 %.",
        "PSNR in dB, SSIM in %, MAE times 1000. 2-D slices in their full in-plane frame, output clamped to "
        "[0, 1], data range 1; SSIM with a Gaussian window of 11, sigma 1.5; identical images count as "
        f"{PSNR_CAP_DB:.0f} dB.",
        "Foreground is the brain where the study is skull-stripped, else the head. A whole volume is scored "
        "as one image, so its PSNR is not the mean of its slices'.",
        "A cell is one pattern and one absent contrast; mean over slices within a cell, then over cells: "
        f"{next(iter(cells.values()))}.",
        "± is the standard deviation over patients." if patients > 1 else "One patient: there is no spread.",
    ]
    if len(set(cells.values())) > 1:
        listed = ", ".join(f"{model} {count}" for model, count in cells.items())
        lines.append(f"The models know different contrasts, so their means are over different cells: {listed}.")
    return [*lines, f"{RESEARCH_USE_ONLY}."]


def _cells(rows: Sequence[Row]) -> str:
    cells = {(row.pattern, row.modality) for row in rows}
    one = sum("+" not in pattern for pattern, _ in cells)
    return f"{len(cells)} ({one} with one contrast present, {len(cells) - one} with several)"


def _count(number: int, thing: str) -> str:
    plural = {"study": "studies"}.get(thing, f"{thing}s")
    return f"{number} {thing if number == 1 else plural}"


def markdown(rows: Sequence[Row], remarks: Iterable[str]) -> str:
    """The whole of ``table.md``."""
    tables = "\n".join(table.markdown() for table in all_tables(rows))
    return "# Evaluation\n\n" + tables + "\n" + "\n".join(f"- {remark}" for remark in remarks) + "\n"


def latex(rows: Sequence[Row], remarks: Iterable[str]) -> str:
    """The whole of ``table.tex``; needs the booktabs package."""
    head = "% needs \\usepackage{booktabs}\n" + "".join(f"% {remark}\n" for remark in remarks)
    return head + "\n" + "\n".join(table.latex() for table in all_tables(rows))
