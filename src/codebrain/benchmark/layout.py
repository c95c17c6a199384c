"""A table's text cells as Markdown, LaTeX and HTML; whole files of several tables with their remarks."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import pairwise

from codebrain.marks import RESEARCH_USE_ONLY

Place = tuple[int, int]
"""A row of the body and a column."""


@dataclass(frozen=True)
class Table:
    """Text cells under one or two rows of headings.

    Attributes:
        title: what the table shows.
        groups: heading and number of columns that it spans; the first column has none. Empty for a table with
            one row of headings; an empty heading leaves its columns without one.
        columns: headings of all columns.
        body: rows of text.
        rule_before: rows of the body above which a line is drawn.
        best: what is printed in bold.
    """

    title: str
    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    rule_before: tuple[int, ...] = ()
    best: frozenset[Place] = frozenset()

    def markdown(self) -> str:
        """A pipe table, columns padded so that it reads well as plain text."""
        names = [name for name, span in self.groups for _ in range(span)] or [""] * (len(self.columns) - 1)
        headings = [" ".join(filter(None, pair)) for pair in zip(["", *names], self.columns, strict=True)]
        lines = [[text.replace("|", r"\|") for text in line] for line in (headings, *self._marked("**", "**"))]
        widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
        rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths))
        text = ["| " + " | ".join(_pad(line, widths)) + " |" for line in lines]
        return "\n".join([f"**{self.title}**", "", text[0], rule + "|", *text[1:]]) + "\n"

    def latex(self) -> str:
        """A ``table`` for the booktabs package."""
        body = []
        for i, line in enumerate(self._marked(r"\textbf{", "}", _tex)):
            body += [r"\midrule"] if i in self.rule_before else []
            body.append(" & ".join(line) + r" \\")
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(self.title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            r"\toprule",
            *self._latex_groups(),
            " & ".join(map(_tex, self.columns)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def _latex_groups(self) -> list[str]:
        if not self.groups:
            return []
        spans = " & ".join(rf"\multicolumn{{{span}}}{{c}}{{{_tex(name)}}}" for name, span in self.groups)
        rules, start = [], 2
        for name, span in self.groups:
            rules += [rf"\cmidrule(lr){{{start}-{start + span - 1}}}"] if name else []
            start += span
        return [rf" & {spans} \\", " ".join(rules)]

    def html(self) -> str:
        """A ``section`` for a page with the classes of the report's style sheet; complete without it."""
        rows = [_html_row(line) for line in self._marked("<strong>", "</strong>", escape)]
        parts = [0, *sorted({*self.rule_before} & {*range(1, len(rows))}), len(rows)]
        bodies = ["<tbody>\n" + "\n".join(rows[start:end]) + "\n</tbody>" for start, end in pairwise(parts)]
        headings = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in self.columns[1:])
        return "\n".join(
            [
                "<section>",
                f"<h2>{escape(self.title)}</h2>",
                '<div class="wide"><table>',
                "<thead>",
                *self._html_groups(),
                f'<tr><th scope="col">{escape(self.columns[0])}</th>{headings}</tr>',
                "</thead>",
                *bodies,
                "</table></div>",
                "</section>\n",
            ]
        )

    def _html_groups(self) -> list[str]:
        if not self.groups:
            return []
        cells = (
            f'<th scope="colgroup" class="number" colspan="{span}">{escape(name)}</th>' if name
            else f'<td colspan="{span}"></td>'
            for name, span in self.groups
        )  # fmt: skip
        return [f"<tr><td></td>{''.join(cells)}</tr>"]

    def _marked(self, before: str, after: str, safe: Callable[[str], str] = str) -> list[list[str]]:
        """The body, made safe for a format, with that format's bold."""
        return [
            [f"{before}{safe(text)}{after}" if (i, j) in self.best else safe(text) for j, text in enumerate(line)]
            for i, line in enumerate(self.body)
        ]


def _html_row(line: Sequence[str]) -> str:
    return f'<tr><th scope="row">{line[0]}</th>' + "".join(f'<td class="number">{x}</td>' for x in line[1:]) + "</tr>"


def _pad(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))]


_TEX = {
    **{character: f"\\{character}" for character in "&%_#${}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "−": "$-$",
    "<": "$<$",
    ">": "$>$",
    "–": "--",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def markdown(tables: Iterable[Table], remarks: Iterable[str], title: str) -> str:
    """A whole Markdown file."""
    listed = "\n".join(f"- {remark}" for remark in remarks)
    return f"# {title}\n\n" + "\n".join(table.markdown() for table in tables) + f"\n{listed}\n"


def latex(tables: Iterable[Table], remarks: Iterable[str]) -> str:
    """A whole file to input; needs the booktabs package."""
    head = "% needs \\usepackage{booktabs}\n" + "".join(f"% {remark}\n" for remark in remarks)
    return head + "\n" + "\n".join(table.latex() for table in tables)


_PAGE_STYLE = """
tbody + tbody tr:first-child > * { border-top: 2px solid var(--line); }
thead [colspan] { border-bottom: 0; text-align: center; }
header, main, footer { max-width: 120rem; }
"""
"""What tables need beyond the report's style sheet."""


def html(tables: Iterable[Table], remarks: Iterable[str], title: str) -> str:
    """A whole page in the look of a study's report: one file, no script, nothing from the network."""
    style = files("codebrain.report").joinpath("style.css").read_text(encoding="utf-8") + _PAGE_STYLE
    seal = "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src '{seal}'; base-uri 'none'; form-action 'none'"
    listed = "\n".join(f"<li>{escape(remark)}</li>" for remark in remarks)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="mark">{RESEARCH_USE_ONLY}.</p>
<h1>{escape(title)}</h1>
</header>
<main>
{"".join(table.html() for table in tables)}<section>
<h2>Remarks</h2>
<ul>
{listed}
</ul>
</section>
</main>
<footer><p>{RESEARCH_USE_ONLY}.</p></footer>
</body>
</html>
"""
