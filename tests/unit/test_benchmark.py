"""Rows, averages, wiring and tables of an evaluation, on slice stores made of numbers."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from codebrain.benchmark import (
    Row,
    evaluate,
    figures,
    reference_model,
    rows_from_csv,
    rows_to_csv,
    summarise,
    tables,
)
from codebrain.benchmark.scoring import (
    Subject,
    Wiring,
    full_frame,
    region_scores,
    scored_slices,
    suitable_patterns,
)
from codebrain.benchmark.summary import patterns_of
from codebrain.data.slices import SliceStore
from codebrain.errors import CodeBrainError
from codebrain.models import build_model
from codebrain.models.mean import Mean, MeanSettings
from codebrain.vocabulary import Modality, ModalitySet, Preparation, strict_subsets
from fabricated import fabricate_store

FOUR = "FLAIR,T1,T2,T1Gd"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    """Three contrasts, two test patients."""
    return fabricate_store(tmp_path_factory.mktemp("three"), 4, val=["s01"], test=["s00", "s02"])


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    """Four contrasts; one of the test patients lacks T1Gd."""
    here = {"a": (True,) * 4, "b": (True, True, True, False), "c": (True,) * 4}
    return fabricate_store(tmp_path_factory.mktemp("four"), here, modalities=FOUR, val=[], test=["a", "b"])


class Rebuilder(Mean):
    """Imputes by the mean; its reconstruction is the truth, a tenth too bright, and unclamped."""

    def reconstruct(self, images, present):
        return images + 0.1


def rebuilder(modalities: str) -> Rebuilder:
    return Rebuilder(ModalitySet.parse(modalities), MeanSettings())


# What is scored


@pytest.mark.parametrize(("modalities", "cells", "one"), [("T1,T2,PD", 9, 6), (FOUR, 28, 12)])
def test_cells_of_ixi_and_brats(tmp_path: Path, modalities: str, cells: int, one: int) -> None:
    small = fabricate_store(tmp_path, 2, modalities=modalities, shape=(2, 16, 16), val=[], test=["s00"])
    rows = evaluate(build_model("zeros", small.preparation.modalities), small)
    assert summarise(rows, metric="PSNR").cells == cells
    assert summarise(rows, metric="PSNR", given="one").cells == one
    assert summarise(rows, metric="PSNR", given="many").cells == cells - one
    assert len(rows) == cells * 3 * 3
    assert len(patterns_of(rows)) == 2 ** len(small.preparation.modalities) - 2


def test_scores_are_those_of_torchmetrics_on_whole_clamped_slices(store: SliceStore) -> None:
    rows = evaluate(rebuilder("T1,T2,FLAIR"), store)
    record, stack = store.record("s02"), store.stack("s02")[1:]  # slice 0 is empty
    h, w = record.full_slice
    truth = np.zeros((len(stack), h, w), np.float32)
    top, left = record.offset
    truth[:, top : top + stack.shape[2], left : left + stack.shape[3]] = stack[:, 2]
    made = np.zeros_like(truth)
    inner = np.clip(stack[:, 2] + 0.1, 0, 1)
    made[:, top : top + stack.shape[2], left : left + stack.shape[3]] = inner
    pairs = [
        (torch.from_numpy(p)[None, None], torch.from_numpy(t)[None, None]) for p, t in zip(made, truth, strict=True)
    ]
    expected = {
        "PSNR": np.mean([float(peak_signal_noise_ratio(p, t, data_range=1.0)) for p, t in pairs]),
        "SSIM": np.mean([float(structural_similarity_index_measure(p, t, data_range=1.0)) for p, t in pairs]),
        "MAE": np.mean([float((p - t).abs().mean()) for p, t in pairs]),
    }
    found = {
        row.metric: row.value
        for row in rows
        if (row.subject, row.task, row.pattern, row.modality, row.region)
        == ("s02", "reconstruction", "T1+T2", "FLAIR", "slice")
    }
    assert found == pytest.approx(expected, abs=1e-5)


def test_the_model_never_sees_what_it_is_asked_for(store: SliceStore) -> None:
    seen = []

    class Spy(Mean):
        def forward(self, images, present, generator=None):
            seen.append((images, present))
            return super().forward(images, present)

    evaluate(Spy(ModalitySet.parse("FLAIR,PD,T1,T2"), MeanSettings()), store)
    assert len(seen) == 12
    for images, present in seen:
        assert images[~present].abs().max() == 0
        assert images[present].amax((1, 2)).max() > 0
        assert not present[:, 1].any()


def test_channel_order_does_not_matter(store: SliceStore) -> None:
    rows = evaluate(rebuilder("T1,T2,FLAIR"), store)
    other = evaluate(rebuilder("FLAIR,PD,T2,T1"), store)
    key = [dataclasses.replace(row, value=0.0) for row in rows]
    assert [dataclasses.replace(row, value=0.0) for row in other] == key
    assert [row.value for row in other] == pytest.approx([row.value for row in rows], abs=1e-5)


def test_batch_size_does_not_matter(store: SliceStore) -> None:
    assert evaluate(rebuilder("T1,T2,FLAIR"), store, batch=1) == evaluate(rebuilder("T1,T2,FLAIR"), store, batch=5)


def test_a_model_with_fewer_contrasts_is_scored_on_those(four: SliceStore) -> None:
    rows = evaluate(rebuilder("T1,T1Gd"), four)
    assert {(row.pattern, row.modality, row.patient) for row in rows} == {
        ("T1", "T1Gd", "a"),
        ("T1Gd", "T1", "a"),
    }


def test_patients_with_gaps_are_scored_on_what_they_have(four: SliceStore) -> None:
    rows = evaluate(build_model("mean", four.preparation.modalities), four)
    of_b = {(row.pattern, row.modality) for row in rows if row.patient == "b"}
    assert len(of_b) == 9
    assert not any("T1Gd" in part for cell in of_b for part in cell)


@pytest.mark.parametrize("modalities", ["PD,T1Gd", "T1,PD"])
def test_a_model_of_other_contrasts_is_refused(store: SliceStore, modalities: str) -> None:
    with pytest.raises(CodeBrainError, match="too few contrasts") as caught:
        evaluate(rebuilder(modalities), store)
    assert caught.value.code == "CKPT_MISMATCH"


def test_a_trained_model_for_other_images_is_refused(store: SliceStore) -> None:
    model = rebuilder("T1,T2,FLAIR")
    model.preparation = Preparation(model.modalities, normalisation="min_max")
    assert evaluate(model, store, patterns="leave-one-out")
    model.sha256 = "trained"
    with pytest.raises(CodeBrainError, match=r"normalisation: .*min_max") as caught:
        evaluate(model, store)
    assert caught.value.code == "CKPT_MISMATCH"


def test_output_that_is_not_finite_is_refused(store: SliceStore) -> None:
    class Broken(Mean):
        def forward(self, images, present, generator=None):
            return torch.full_like(images, torch.nan)

    with pytest.raises(CodeBrainError, match="not finite") as caught:
        evaluate(Broken(store.preparation.modalities, MeanSettings()), store)
    assert caught.value.code == "CKPT_NONFINITE"


def test_patterns_can_be_chosen(store: SliceStore) -> None:
    model = build_model("mean", store.preparation.modalities)
    assert patterns_of(evaluate(model, store, patterns="leave-one-out")) == ["T1+T2", "T1+FLAIR", "T2+FLAIR"]
    chosen = [ModalitySet.parse("FLAIR,T1"), ModalitySet.parse("T2")]
    assert patterns_of(evaluate(model, store, patterns=chosen)) == ["T2", "T1+FLAIR"]
    with pytest.raises(CodeBrainError) as caught:
        evaluate(model, store, patterns=[ModalitySet.parse("T1,T2,FLAIR")])
    assert caught.value.code == "DATA_CONTRASTS"


def test_leave_one_out_is_of_what_the_subject_has(four: SliceStore) -> None:
    wiring = Wiring.of(build_model("zeros", four.preparation.modalities), four.preparation)
    for name, size in (("a", 3), ("b", 2)):
        found = suitable_patterns("leave-one-out", four.record(name).available, wiring)
        assert {sum(pattern) for pattern in found} == {size}
        assert len(found) == size + 1


def test_middle_slices_and_progress(store: SliceStore) -> None:
    steps = []
    rows = evaluate(
        rebuilder("T1,T2,FLAIR"),
        store,
        middle=3,
        regions=("slice",),
        progress=lambda *step: steps.append(step),
    )
    assert {row.n_slices for row in rows} == {3}
    assert steps[-1][:2] == (12, 12)
    assert [step[0] for step in steps] == list(range(1, 13))
    wiring = Wiring.of(rebuilder("T1,T2,FLAIR"), store.preparation)
    kept = Subject.read(store, "s00", wiring, middle=3).images
    assert torch.equal(kept, torch.from_numpy(store.stack("s00")[1:4]))


def test_empty_slices_do_not_count(store: SliceStore) -> None:
    assert scored_slices(store.record("s00")) == [1, 2, 3, 4]
    assert scored_slices(store.record("s00"), 2) == [2, 3]
    assert scored_slices(dataclasses.replace(store.record("s00"), foreground_pixels=(0, 3, 4, 300, 9))) == [
        2,
        3,
        4,
    ]
    rows = evaluate(build_model("zeros", store.preparation.modalities), store)
    assert {row.n_slices for row in rows} == {4}
    assert max(row.value for row in rows if row.metric == "PSNR") < 30


def test_full_frame_pads_and_cuts(store: SliceStore) -> None:
    record = dataclasses.replace(store.record("s00"), full_slice=(6, 9), offset=(-1, 2))
    stored = torch.arange(40.0).reshape(1, 5, 8)
    out = full_frame(stored, record)
    assert out.shape == (1, 6, 9)
    assert torch.equal(out[0, :4, 2:], stored[0, 1:, :7])
    assert out[0, 4:].abs().sum() == 0
    assert out[0, :, :2].abs().sum() == 0


def test_regions() -> None:
    chance = torch.Generator().manual_seed(0)
    truth, brain = torch.rand(4, 16, 16, generator=chance), torch.zeros(4, 16, 16, dtype=torch.bool)
    brain[1:, 4:12, 4:12] = True
    made = truth.clone()
    made[:, :4] += 0.2
    made[2, 4:12, 4:12] += 0.1
    scores = {(region, metric): (value, n) for region, metric, value, n in region_scores(made, truth, brain)}
    assert len(scores) == 9
    assert scores["brain", "MAE"] == (pytest.approx(0.1 / 3, abs=1e-6), 3)
    assert scores["brain", "PSNR"][0] == pytest.approx((100 + 20 + 100) / 3, abs=1e-3)
    error = (made - truth).square().mean()
    assert scores["volume", "PSNR"] == (pytest.approx(-10 * math.log10(error), abs=1e-4), 4)
    assert scores["volume", "MAE"][0] == pytest.approx(scores["slice", "MAE"][0], abs=1e-6)
    assert scores["slice", "PSNR"][1] == 4


def test_a_stack_without_brain_has_no_brain_rows() -> None:
    empty = torch.zeros(2, 16, 16)
    assert list(region_scores(empty, empty, empty.bool(), ("brain",))) == []


# Pictures


def test_examples_are_cut_around_the_foreground_and_cover_few_and_many_contrasts(four: SliceStore) -> None:
    examples = figures.examples_of(build_model("mean", four.preparation.modalities), four)
    assert [(e.title, len(e.modalities)) for e in examples] == [
        ("a\nfrom FLAIR", 3),
        ("a\nfrom FLAIR+T1", 2),
        ("a\nfrom FLAIR+T1+T2", 1),
        ("b\nfrom FLAIR", 2),
        ("b\nfrom FLAIR+T1", 1),
    ]
    for example in examples:
        assert example.truth.shape == example.imputed.shape
    wiring = Wiring.of(build_model("mean", four.preparation.modalities), four.preparation)
    subject = Subject.read(four, "a", wiring, middle=1)
    rows, columns = figures.box_around(subject.brain[0], margin=0)
    inside = subject.brain[0][rows, columns]
    assert inside.all()
    assert inside.sum() == subject.brain.sum()


def test_bars_show_every_model_and_pattern(store: SliceStore) -> None:
    rows = evaluate(build_model("mean", store.preparation.modalities), store, label="some_model")
    with Image.open(io.BytesIO(figures.scores_figure(rows))) as picture:
        colours = {colour for count, colour in picture.convert("RGB").getcolors(2**24) if count > 500}
    assert (0x00, 0x72, 0xB2) in colours


# Averages


def row(patient: str, value: float, n: int, *, pattern: str = "T1", modality: str = "T2", region: str = "slice") -> Row:
    return Row("m", patient, patient, pattern, modality, "imputation", region, "PSNR", value, n)


def test_pooling_is_exactly_the_mean_over_all_slices() -> None:
    chance = np.random.default_rng(0)
    slices = {patient: chance.uniform(10, 40, n) for patient, n in (("a", 7), ("b", 150), ("c", 31))}
    rows = [row(patient, float(values.mean()), len(values)) for patient, values in slices.items()]
    pooled = np.concatenate(list(slices.values())).mean()
    assert summarise(rows, metric="PSNR").mean == pytest.approx(pooled, abs=1e-12)
    volumes = [dataclasses.replace(r, region="volume") for r in rows]
    alike = np.mean([values.mean() for values in slices.values()])
    assert summarise(volumes, metric="PSNR", region="volume").mean == pytest.approx(alike, abs=1e-12)


def test_cells_weigh_alike_however_many_slices_they_have() -> None:
    rows = [
        row("a", 20, 1000),
        row("a", 30, 1, modality="PD"),
        row("a", 40, 5, pattern="T1+T2", modality="PD"),
    ]
    score = summarise(rows, metric="PSNR")
    assert (score.mean, score.cells, score.patients, score.spread) == (30, 3, 1, None)
    assert summarise(rows, metric="PSNR", given="one").mean == 25
    assert summarise(rows, metric="PSNR", given="many").mean == 40
    assert summarise(rows, metric="PSNR", modality="PD").mean == 35
    assert summarise(rows, metric="SSIM") is None


def test_spread_is_over_patients() -> None:
    rows = [
        row(p, v + d, 9, modality=m) for p, v in (("a", 20), ("b", 24), ("c", 28)) for m, d in (("T2", 1), ("PD", -1))
    ]
    score = summarise(rows, metric="PSNR")
    assert score.mean == pytest.approx(24)
    assert score.spread == pytest.approx(4)
    assert score.patients == 3


def test_rows_survive_csv(store: SliceStore) -> None:
    rows = evaluate(rebuilder("T1,T2,FLAIR"), store)
    assert rows_from_csv(rows_to_csv(rows)) == rows
    with pytest.raises(CodeBrainError) as caught:
        rows_from_csv("a,b\n1,2\n")
    assert caught.value.code == "DATA_CORRUPT"


# References


def test_the_polynomial_learns_what_the_slices_hold(store: SliceStore) -> None:
    steps = []
    fitted = reference_model("polynomial", store, progress=lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1] == len(store.index("train"))
    scores = {
        name: summarise(evaluate(model, store), metric="PSNR", region="brain").mean
        for name, model in (("polynomial", fitted), ("zeros", reference_model("zeros", store)))
    }
    # T2 and FLAIR of the fabricated store are polynomials of T1, but T1 is a root of FLAIR.
    assert scores["polynomial"] > 40
    assert scores["zeros"] < 10


def test_references_can_be_held_to_the_contrasts_of_a_model(four: SliceStore) -> None:
    few = ModalitySet.parse("T1Gd,T1")
    fitted = reference_model("polynomial", four, modalities=few)
    rows = evaluate(fitted, four)
    assert {r.modality for r in rows} == {"T1", "T1Gd"}
    assert summarise(rows, metric="PSNR").cells == 2
    assert summarise(rows, metric="PSNR", region="brain").mean > 30


# Tables


def test_tables_hold_the_printed_numbers() -> None:
    first = [
        dataclasses.replace(row("a", v * s, 3, pattern=p, modality=m), metric=metric, task=task)
        for p, m, v in (("T1", "T2", 20), ("T2", "T1", 24))
        for metric, s in (("PSNR", 1), ("SSIM", 0.01), ("MAE", 0.001))
        for task in ("imputation", "reconstruction")
    ]
    rows = [
        *first,
        *(dataclasses.replace(r, patient="b", subject="b", value=r.value + 2) for r in first if r.metric == "PSNR"),
    ]
    table = tables.by_pattern(rows, "m")
    assert table.groups == (("imputation", 3), ("reconstruction", 3))
    assert table.body[0] == ("T1", "21.00 ± 1.41", "20.00", "20.00", "21.00 ± 1.41", "20.00", "20.00")
    assert [line[0] for line in table.body] == [
        "T1",
        "T2",
        "mean, all",
        "mean, one present",
        "mean, several present",
    ]
    assert table.body[4][1:] == ("–",) * 6
    text = table.markdown().splitlines()
    assert len({len(line) for line in text[2:]}) == 1
    assert "21.00 ± 1.41" in text[4]
    tex = table.latex()
    assert r"\multicolumn{3}{c}{imputation} & \multicolumn{3}{c}{reconstruction} \\" in tex
    assert r"T1 & 21.00 $\pm$ 1.41 & 20.00" in tex
    assert tex.count(r"\midrule") == 2


def test_comparison_has_a_line_per_model_and_escapes_names() -> None:
    rows = [dataclasses.replace(row("a", value, 3), model=model) for model, value in (("one_a", 20), ("two", 21))]
    table = tables.comparison(rows)
    assert [line[:2] for line in table.body] == [("one_a", "20.00"), ("two", "21.00")]
    assert table.groups[0] == ("all", 3)
    assert r"one\_a" in table.latex()


def test_notes_say_what_the_numbers_are() -> None:
    rows = [
        row("a", 20, 3),
        dataclasses.replace(row("a", 20, 3, modality="PD"), model="other"),
        row("a", 20, 3),
    ]
    text = "\n".join(tables.notes(rows, split="test"))
    assert "1 patient, 1 study, 3 slices" in text
    assert "100 dB" in text
    assert "no spread" in text
    assert "not a medical device" in text
    assert "different cells" not in text
    more = [*rows, dataclasses.replace(row("a", 20, 3, modality="PD"))]
    assert "m 2 (2 with one contrast present, 0 with several), other 1 (1 with one" in "\n".join(
        tables.notes(more, split="test", middle=2)
    )


def test_patterns_are_ordered_by_size_then_vocabulary() -> None:
    names = ["+".join(m for m, here in zip(Modality, p, strict=True) if here) for p in strict_subsets((True,) * 5)]
    assert patterns_of([row("a", 1, 1, pattern=name) for name in reversed(names)]) == names
