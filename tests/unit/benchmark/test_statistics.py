"""Intervals over patients and paired tests: against brute force, by hand, and by property."""

from __future__ import annotations

import builtins
import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codebrain.benchmark import Row, rows_to_csv, summarise
from codebrain.benchmark.rows import rows_from_parquet, rows_to_parquet
from codebrain.benchmark.statistics import Bootstrap, Interval, interval, paired_tests, reference_of
from codebrain.errors import CodeBrainError

QUICK = Bootstrap(resamples=400)
CELLS = (("T1", "T2"), ("T1", "PD"), ("T1+T2", "PD"))


def row(patient: str, value: float, *, model: str = "m", cell: tuple[str, str] = CELLS[0], n: int = 3) -> Row:
    return Row(model, patient, patient, *cell, "imputation", "slice", "PSNR", value, n)


def cohort(values: list[float], model: str = "m") -> list[Row]:
    """One patient per value, with three cells around it."""
    return [
        row(f"p{i:02}", value + shift, model=model, cell=cell, n=3 + i)
        for i, value in enumerate(values)
        for cell, shift in zip(CELLS, (-1.0, 0.0, 1.0), strict=True)
    ]


@st.composite
def rows_with_gaps(draw: st.DrawFn) -> list[Row]:
    """Two to six patients, each with some of the cells and slices of their own number."""
    found = []
    for i in range(draw(st.integers(2, 6))):
        cells = draw(st.lists(st.sampled_from(CELLS), min_size=1, max_size=3, unique=True))
        found += [
            row(f"p{i}", draw(st.floats(10, 40, width=32)), cell=cell, n=draw(st.integers(1, 90))) for cell in cells
        ]
    return found


# Intervals


def test_one_patient_has_no_interval() -> None:
    assert interval(cohort([20]), metric="PSNR") is None
    assert interval([], metric="PSNR") is None
    assert interval(cohort([20, 30]), metric="SSIM") is None


def test_a_resample_is_pooled_as_the_table_is() -> None:
    """The resamples' means are, one by one, those of summarise on the drawn patients' rows."""
    rows = cohort([20, 30, 25])
    rows = [r for r in rows if not (r.patient == "p01" and r.modality == "PD")]  # a gap
    renamed = [
        [dataclasses.replace(r, patient=f"{r.patient}{k}") for k, p in enumerate(drawn) for r in rows if r.patient == p]
        for drawn in itertools.product(("p00", "p01", "p02"), repeat=3)
    ]
    every = [summarise(drawn, metric="PSNR").mean for drawn in renamed]
    found = interval(rows, metric="PSNR", bootstrap=Bootstrap(resamples=20_000, level=0.6))
    assert (found.low, found.high) == pytest.approx(
        np.quantile(every, [0.2, 0.8], method="inverted_cdf").tolist(), abs=1e-9
    )


@settings(deadline=None, max_examples=60)
@given(rows_with_gaps(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows: list[Row], chance) -> None:
    shuffled = list(rows)
    chance.shuffle(shuffled)
    assert interval(shuffled, metric="PSNR", bootstrap=QUICK) == interval(rows, metric="PSNR", bootstrap=QUICK)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(10, 40, width=32), min_size=2, max_size=12))
def test_the_interval_covers_the_mean_and_stays_among_the_patients(values: list[float]) -> None:
    rows = cohort(values)
    found, middle = interval(rows, metric="PSNR", bootstrap=QUICK), summarise(rows, metric="PSNR").mean
    assert found.low - 1e-9 <= middle <= found.high + 1e-9
    assert min(values) - 1e-9 <= found.low
    assert found.high <= max(values) + 1e-9


@settings(deadline=None, max_examples=30)
@given(rows_with_gaps(), st.floats(-5, 5), st.floats(0.1, 3))
def test_the_interval_moves_with_the_values(rows: list[Row], shift: float, scale: float) -> None:
    first = interval(rows, metric="PSNR", bootstrap=QUICK)
    moved = [dataclasses.replace(r, value=r.value * scale + shift) for r in rows]
    second = interval(moved, metric="PSNR", bootstrap=QUICK)
    assert (second.low, second.high) == pytest.approx((first.low * scale + shift, first.high * scale + shift))


def test_levels_are_nested_and_seeds_give_other_draws() -> None:
    rows = cohort(np.random.default_rng(1).normal(25, 2, 15).tolist())
    half, wide = (interval(rows, metric="PSNR", bootstrap=Bootstrap(level=level)) for level in (0.5, 0.95))
    assert wide.low < half.low < half.high < wide.high
    assert interval(rows, metric="PSNR") == wide
    assert interval(rows, metric="PSNR", bootstrap=Bootstrap(seed=1)) != wide


def test_alike_patients_leave_no_width() -> None:
    found = interval(cohort([24.0] * 5), metric="PSNR")
    assert (found.low, found.high) == pytest.approx((24, 24))


def test_only_the_chosen_rows_count() -> None:
    rows = cohort([20, 30])
    noise = [dataclasses.replace(r, region="brain", value=0.0) for r in rows]
    noise += [dataclasses.replace(r, model="other", value=99.0) for r in rows]
    assert interval(rows + noise, metric="PSNR", model="m") == interval(rows, metric="PSNR")
    many = interval(rows, metric="PSNR", given="many")
    assert (many.low, many.high) == pytest.approx((21, 31))


def test_nineteen_of_twenty_intervals_cover_the_truth() -> None:
    """A normal population, forty patients: theory gives P(|t39| < 1.96 sqrt(39/40)) = 94 %.

    The tolerance is three standard errors of 1500 trials.
    """
    chance = np.random.default_rng(0)
    covered = 0
    for _ in range(1500):
        rows = [row(f"p{i}", 25 + float(noise)) for i, noise in enumerate(chance.normal(size=40))]
        found = interval(rows, metric="PSNR", bootstrap=Bootstrap(resamples=1000))
        covered += found.low <= 25 <= found.high
    assert covered / 1500 == pytest.approx(0.94, abs=0.0185)


# Paired tests


def test_identical_models_do_not_differ() -> None:
    rows = cohort([20, 21, 22, 23, 24, 25]) + cohort([20, 21, 22, 23, 24, 25], "other")
    (test,) = paired_tests(rows, metric="PSNR")
    assert (test.model, test.reference, test.patients) == ("other", "m", 6)
    assert (test.difference, test.interval, test.p, test.adjusted) == (0, Interval(0, 0), 1, 1)


@pytest.mark.parametrize(("patients", "p"), [(6, 2 / 64), (8, 2 / 256), (5, None)])
def test_the_smallest_p_is_that_of_counting_signs(patients: int, p: float | None) -> None:
    """All patients better: two of the 2^n patterns of signs are as extreme."""
    values = [20.0 + i for i in range(patients)]
    rows = cohort(values) + cohort([value + 1 + i / 10 for i, value in enumerate(values)], "better")
    (test,) = paired_tests(rows, metric="PSNR")
    assert test.p == (None if p is None else pytest.approx(p))
    assert test.adjusted == test.p
    assert test.difference == pytest.approx(1 + (patients - 1) / 20)
    assert test.interval.low <= test.difference <= test.interval.high


def test_holm_by_hand() -> None:
    """Raw p of all-better for 6, 8 and 10 patients: 1/32, 1/128, 1/512; times 1, 2 and 3."""
    rows = cohort([20.0 + i for i in range(10)], "CodeBrain")
    for name, n in (("six", 6), ("ten", 10), ("eight", 8), ("five", 5)):
        rows += cohort([21.0 + 1.1 * i for i in range(n)], name)
    found = {test.model: test for test in paired_tests(rows, metric="PSNR")}
    assert list(found) == ["six", "ten", "eight", "five"]
    assert {name: test.adjusted for name, test in found.items()} == {
        "six": pytest.approx(1 / 32), "ten": pytest.approx(3 / 512), "eight": pytest.approx(2 / 128), "five": None
    }  # fmt: skip


def test_adjusted_p_never_falls_below_a_smaller_one_nor_above_one() -> None:
    chance = np.random.default_rng(3)
    base = chance.normal(25, 1, 12)
    rows = cohort(base.tolist(), "CodeBrain")
    for k in range(6):
        rows += cohort((base + chance.normal(0.15 * k, 0.5, 12)).tolist(), f"m{k}")
    tests = sorted(paired_tests(rows, metric="PSNR"), key=lambda test: test.p)
    adjusted = [test.adjusted for test in tests]
    assert adjusted == sorted(adjusted)
    assert all(test.p <= test.adjusted <= 1 for test in tests)


def test_pairs_are_taken_over_what_both_were_scored_on() -> None:
    mine = cohort([20, 22, 24])
    other = [dataclasses.replace(r, value=r.value + 1) for r in cohort([20, 22], "other") if r.modality == "PD"]
    (test,) = paired_tests(mine + other, metric="PSNR")
    assert test.patients == 2
    assert test.difference == pytest.approx(1)
    apart = [dataclasses.replace(r, model="other", patient="x", subject="x") for r in mine]
    (test,) = paired_tests(mine + apart, metric="PSNR")
    assert (test.patients, test.difference, test.interval, test.p) == (0, None, None, None)


@settings(deadline=None, max_examples=12)
@given(st.lists(st.tuples(st.floats(10, 40, width=16), st.floats(10, 40, width=16)), min_size=6, max_size=12),
       st.randoms(use_true_random=False))  # fmt: skip
def test_swapping_models_turns_the_sign_and_order_changes_nothing(pairs, chance) -> None:
    first, second = zip(*pairs, strict=True)
    rows = cohort(list(first), "one") + cohort(list(second), "two")
    (there,) = paired_tests(rows, metric="PSNR", reference="one", bootstrap=QUICK)
    (back,) = paired_tests(rows, metric="PSNR", reference="two", bootstrap=QUICK)
    assert back.difference == pytest.approx(-there.difference, abs=1e-12)
    assert back.p == pytest.approx(there.p)
    chance.shuffle(rows)
    (again,) = paired_tests(rows, metric="PSNR", reference="one", bootstrap=QUICK)
    assert again.difference == pytest.approx(there.difference, abs=1e-12)
    assert again.p == pytest.approx(there.p)


def test_the_reference_is_ours_or_the_first_or_the_named() -> None:
    assert reference_of(["zeros", "codebrain", "MMT"]) == "codebrain"
    assert reference_of(["zeros", "MMT"]) == "zeros"
    assert reference_of(["zeros", "MMT"], "MMT") == "MMT"
    with pytest.raises(CodeBrainError, match="zeros or MMT") as caught:
        paired_tests(cohort([1, 2], "zeros") + cohort([1, 2], "MMT"), metric="PSNR", reference="mmt")
    assert caught.value.code == "CONFIG"
    assert paired_tests([], metric="PSNR") == []


# Rows as Parquet


def test_rows_survive_parquet_with_the_columns_of_the_csv() -> None:
    from pyarrow import BufferReader, parquet

    rows = cohort([20.123456789012345, 1e-300, float("inf")])
    data = rows_to_parquet(iter(rows))
    assert rows_from_parquet(data) == rows
    assert parquet.read_schema(BufferReader(data)).names == rows_to_csv(rows).splitlines()[0].split(",")
    assert rows_from_parquet(rows_to_parquet([])) == []


@pytest.mark.parametrize("data", [b"", b"PAR1 but nothing more PAR1", b"model,patient\n"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CodeBrainError) as caught:
        rows_from_parquet(data)
    assert caught.value.code == "DATA_CORRUPT"


@pytest.mark.parametrize(("column", "values"), [("value", [None]), ("n_slices", ["three"]), ("extra", [1])])
def test_other_columns_are_refused(column: str, values: list[object]) -> None:
    import io

    import pyarrow
    from pyarrow import parquet

    columns = {name: [value] for name, value in dataclasses.asdict(row("a", 1.0)).items()} | {column: values}
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), stream)
    with pytest.raises(CodeBrainError) as caught:
        rows_from_parquet(stream.getvalue())
    assert caught.value.code == "DATA_CORRUPT"


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest, **named):
        if name.split(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    for use in (lambda: rows_to_parquet([]), lambda: rows_from_parquet(b"")):
        with pytest.raises(CodeBrainError, match=r"codebrain-mri\[bench\]") as caught:
            use()
        assert caught.value.code == "ENV_EXTRA"
