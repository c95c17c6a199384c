"""The benchmark's tables: what is printed, what is bold, and that it survives three formats."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser

import pytest

from codebrain.benchmark import Row, summarise, tables
from codebrain.benchmark.statistics import Bootstrap, interval, paired_tests
from codebrain.errors import CodeBrainError
from codebrain.marks import RESEARCH_USE_ONLY

QUICK = Bootstrap(resamples=300)
SCALES = (("PSNR", 1.0), ("SSIM", 0.01), ("MAE", 0.001))


def model_rows(model: str, values: list[float], task: str = "imputation") -> list[Row]:
    """One patient per value; O->O one below it and M->O one above."""
    return [
        Row(model, f"p{i}", f"p{i}", pattern, "PD", task, "slice", metric, (value + shift) * scale, 5)
        for i, value in enumerate(values)
        for pattern, shift in (("T1", -1), ("T1+T2", 1))
        for metric, scale in SCALES
    ]


class Reader(HTMLParser):
    """Rows of cells of a page; checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not {"src", "href", "style"} & {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


# Intervals and what is best


def test_intervals_are_printed_where_there_are_patients() -> None:
    rows = model_rows("m", [20, 22, 24])
    table = tables.comparison(rows, bootstrap=QUICK)
    found = interval(rows, metric="PSNR", bootstrap=QUICK)
    assert table.body[0][1] == f"22.00 [{found.low:.2f}, {found.high:.2f}]"
    assert tables.comparison(rows).body[0][1] == "22.00 ± 2.00"
    assert tables.comparison(model_rows("m", [20]), bootstrap=QUICK).body[0][1] == "20.00"
    pattern = tables.by_pattern(rows, "m", bootstrap=QUICK)
    assert [line[0] for line in pattern.body][:3] == ["T1", "T1+T2", "mean, all"]
    assert pattern.body[2][1] == table.body[0][1]


def test_the_best_of_a_column_is_bold_and_mae_counts_downwards() -> None:
    rows = model_rows("a", [20]) + model_rows("b", [21])
    table = tables.comparison(rows, best=True)
    assert table.best == {(1, 1), (1, 2), (0, 3), (1, 4), (1, 5), (0, 6), (1, 7), (1, 8), (0, 9)}
    assert "| **21.00** | **21.00** |     21.00 |" in table.markdown()
    assert r"b & \textbf{21.00} & \textbf{21.00} & 21.00 &" in table.latex()
    assert '<td class="number"><strong>21.00</strong></td>' in table.html()
    assert "**2" not in tables.comparison(rows).markdown()


def test_what_prints_alike_shares_the_first_place_and_one_line_has_none() -> None:
    rows = model_rows("a", [20]) + model_rows("b", [20.001]) + model_rows("c", [19])
    assert {place for place in tables.comparison(rows, best=True).best if place[1] == 1} == {(0, 1), (1, 1)}
    assert tables.comparison(model_rows("a", [20]), best=True).best == frozenset()


# Beside the paper


PAPER = {("CodeBrain", "any", "PSNR"): 21.5, ("CodeBrain", "many", "PSNR"): 21.5, ("MMT", "any", "PSNR"): 30.0,
         ("CodeBrain", "any", "MAE"): 19.0}  # fmt: skip


def test_ours_theirs_and_the_difference() -> None:
    rows = model_rows("CodeBrain", [20, 22]) + model_rows("zeros", [5, 7])
    table = tables.beside_paper(rows, PAPER, metric="PSNR")
    assert table.columns == ("Model", *["ours", "paper", "difference"] * 3)
    assert table.body == (
        ("CodeBrain", "21.00", "21.50", "−0.50", "20.00", "–", "–", "22.00", "21.50", "+0.50"),
        ("zeros", "6.00", "–", "–", "5.00", "–", "–", "7.00", "–", "–"),
        ("MMT", "–", "30.00", "–", "–", "–", "–", "–", "–", "–"),
    )
    assert table.best == {(0, 1), (2, 2), (0, 4), (0, 7)}
    assert r"$-$0.50" in table.latex()
    same = tables.beside_paper(rows, {("CodeBrain", "any", "PSNR"): 21.0000001}, metric="PSNR")
    assert same.body[0][3] == "0.00"


def test_variants_have_a_line_each_and_a_table_for_each_metric_of_the_paper() -> None:
    rows = model_rows("full", [20, 22]) + model_rows("no_gan", [19, 21])
    (alone,) = tables.compared(rows, heading="Variant")
    assert alone.columns[0] == "Variant"
    assert [line[:2] for line in alone.body] == [("full", "21.00 ± 1.41"), ("no_gan", "20.00 ± 1.41")]
    both = tables.compared(rows, {("full", "any", "MAE"): 19.0, ("full", "any", "PSNR"): 21.5}, bootstrap=QUICK)
    assert [table.title.split()[0] for table in both] == ["Whole", "PSNR", "MAE"]
    assert "[" in both[0].body[0][1]
    assert both[2].body[0][:4] == ("full", "21.00", "19.00", "+2.00")


# Tests and budgets


def test_paired_table_prints_differences_and_corrected_p() -> None:
    values = [20.0, 22, 24, 23, 21, 25, 19, 26]
    rows = model_rows("zeros", [v - 3 - i / 10 for i, v in enumerate(values)]) + model_rows("CodeBrain", values)
    table = tables.paired(rows, bootstrap=QUICK)
    assert table.title == "Difference from CodeBrain: whole slices, imputation"
    ((name, patients, difference, p, *_),) = table.body
    (test,) = paired_tests(rows, metric="PSNR", bootstrap=QUICK)
    assert (name, patients, p) == ("zeros", "8", "0.0078")
    low, high = (f"−{abs(end):.2f}" for end in (test.interval.low, test.interval.high))
    assert difference == f"−3.35 [{low}, {high}]"
    assert table.body[0][4].startswith("−3.35 [")  # SSIM, in %
    assert tables.paired(rows, given="one").title.endswith("imputation, one present")
    head = table.markdown().splitlines()[2]
    assert "| Patients |" in head
    assert "PSNR p (Holm)" in head
    assert r"\cmidrule(lr){3-4}" in table.latex()
    assert r"\cmidrule(lr){2-2}" not in table.latex()
    assert tables.paired([]).body == ()


def test_few_patients_get_words_instead_of_a_p_value() -> None:
    rows = model_rows("a", [20, 21, 22, 23, 24]) + model_rows("b", [21, 23, 25, 27, 29])
    assert tables.paired(rows).body[0][3] == "too few patients"
    with pytest.raises(CodeBrainError):
        tables.paired(rows, reference="c")
    many = model_rows("a", [20 + i for i in range(30)]) + model_rows("b", [21 + 1.1 * i for i in range(30)])
    table = tables.paired(many)
    assert table.body[0][3] == "< 0.0001"
    assert "$<$ 0.0001" in table.latex()
    assert "&lt; 0.0001" in table.html()


def test_budget_has_no_groups_and_dashes_for_what_is_unknown() -> None:
    table = tables.budget(
        [
            {"method": "CodeBrain", "parameters": 160_400_000, "samples": 24_000, "steps": 2000,
             "training_seconds": 6543.2, "slice_seconds": 0.1234},
            {"method": "zeros", "parameters": 0, "steps": None},
        ]
    )  # fmt: skip
    assert table.body == (
        ("CodeBrain", "160,400,000", "24,000", "2,000", "6,543", "0.123"),
        ("zeros", "0", "–", "–", "–", "–"),
    )
    assert table.best == frozenset()
    assert table.markdown().splitlines()[2].startswith("| Method    |  Parameters |")
    assert "multicolumn" not in table.latex()
    assert len(read(table.html()).rows) == 3


# Formats


def test_html_holds_the_cells_of_the_table() -> None:
    rows = model_rows("m", [20, 22]) + model_rows("m", [23, 25], "reconstruction")
    table = tables.by_pattern(rows, "m", bootstrap=QUICK)
    found = read(table.html())
    assert found.rows[0] == ["", "imputation", "reconstruction"]
    assert [tuple(line) for line in found.rows[1:]] == [table.columns, *table.body]
    assert table.html().count("<tbody>") == 2


def test_the_page_is_one_file_that_loads_nothing() -> None:
    rows = model_rows("<script>a|b</script>", [20, 22]) + model_rows("two", [21, 24])
    table = tables.comparison(rows, bootstrap=QUICK, best=True)
    page = tables.html([table, tables.paired(rows)], ["A & B", "C"], "Benchmark <1>")
    found = read(page[page.index("<html") :])
    assert not {"script", "img", "link", "iframe"} & found.tags
    assert "http" not in page.replace("http-equiv", "")
    assert "<h1>Benchmark &lt;1&gt;</h1>" in page
    assert "<li>A &amp; B</li>" in page
    assert RESEARCH_USE_ONLY in page
    assert ["<script>a|b</script>", *table.body[0][1:]] in found.rows
    style = re.search("<style>(.*)</style>", page, re.DOTALL).group(1)
    assert ".number {" in style
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in page
    assert r"| <script>a\|b</script> |" in table.markdown()


def test_notes_say_where_the_intervals_come_from() -> None:
    rows = model_rows("m", [20, 22])
    text = "\n".join(tables.notes(rows, split="test", bootstrap=Bootstrap()))
    assert "95% percentile bootstrap interval over patients, 10,000 resamples, seed 0" in text
    assert "With 2 patients such intervals are too narrow" in text
    assert "±" not in text
    assert "too narrow" not in "\n".join(tables.notes(model_rows("m", [20.0] * 20), split="test", bootstrap=QUICK))
    assert "no spread" in "\n".join(tables.notes(model_rows("m", [20]), split="test", bootstrap=QUICK))
    assert "fewer than 6 patients" in "\n".join(tables.paired_notes())


def test_the_tables_mean_is_summarise() -> None:
    rows = model_rows("m", [20, 22]) + [dataclasses.replace(r, value=0.0) for r in model_rows("other", [1])]
    line = tables.comparison(rows).body[0]
    given = {name: summarise(rows, metric="PSNR", model="m", given=name).mean for name in ("any", "one", "many")}
    assert [float(line[i].split()[0]) for i in (1, 4, 7)] == pytest.approx(list(given.values()))


def test_cells_stand_beside_numbers_whose_patterns_name_contrasts_in_any_order() -> None:
    published = {("T2+T1", "PD"): 25.5, ("T1", "PD"): 30.0, ("T2", "PD"): 1.0}
    table = tables.cells_beside(
        model_rows("CodeBrain", [24.0, 26.0]), published, metric="PSNR", task="imputation", source="the paper's table 1"
    )
    assert table.body == (("T1 to PD", "24.00", "30.00", "−6.00"), ("T1+T2 to PD", "26.00", "25.50", "+0.50"))
    assert "beside the paper's table 1" in table.title
