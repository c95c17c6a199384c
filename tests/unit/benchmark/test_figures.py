"""Figures of a benchmark: what is drawn, what is written into it, that nothing is cut off or overlaps."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codebrain.benchmark import figures
from codebrain.benchmark.figures import bars, chosen, codes, drawing, methods, scenarios
from codebrain.benchmark.rows import Row
from codebrain.benchmark.scoring import Wiring, scored_slices
from codebrain.data.slices import SliceStore
from codebrain.errors import CodeBrainError
from codebrain.marks import ENHANCEMENT_UNKNOWN, RESEARCH_USE_ONLY, SYNTHETIC
from codebrain.metrics import psnr
from codebrain.models import build_model
from codebrain.models._contract import ImputationModel
from codebrain.vocabulary import Modality, ModalitySet, pattern_name, strict_subsets
from fabricated import fabricate_store

FOUR = "T1,T2,FLAIR,T1Gd"
TINY = {"width": 2, "depth": 1, "levels": (4, 3, 3, 2), "critic_width": 2}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    """Four contrasts; the first test patient lacks T1Gd, the second is complete."""
    here = {"a": (True, True, True, False), "b": (True,) * 4, "c": (True,) * 4}
    folder = tmp_path_factory.mktemp("four")
    return fabricate_store(folder, here, modalities=FOUR, val=[], test=["a", "b"], shape=(7, 32, 24))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    return fabricate_store(tmp_path_factory.mktemp("three"), 3, val=[], test=["s00", "s01"], shape=(7, 32, 24))


def model_for(store: SliceStore, name: str = "mean", **settings: object) -> ImputationModel:
    torch.manual_seed(0)
    return build_model(name, store.preparation.modalities, settings).eval()


def coded(store: SliceStore, **settings: object) -> ImputationModel:
    return model_for(store, "codebrain", **TINY, **settings)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The matplotlib figures behind the drawings made in a test; nothing is rendered."""
    kept: list[object] = []

    def keep(build):  # type: ignore[no-untyped-def]
        figure, caption = build()
        kept.append(figure)
        return figures.Drawing(b"", b"", caption)

    for module in (bars, codes, methods, scenarios):
        monkeypatch.setattr(module, "drawn", keep)
    return kept


def words(axes) -> list[str]:  # type: ignore[no-untyped-def]
    return [text.get_text() for text in axes.texts]


def pictures(figure, cmap: str):  # type: ignore[no-untyped-def]
    return [axes for axes in figure.axes if axes.images and axes.images[0].get_cmap().name == cmap]


def refused(call, *args, **how) -> str:  # type: ignore[no-untyped-def]
    with pytest.raises(CodeBrainError) as caught:
        call(*args, **how)
    return str(caught.value.code)


def boxes(texts, figure):  # type: ignore[no-untyped-def]
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = figure.canvas
    if not isinstance(canvas, FigureCanvasAgg) or figure.dpi != drawing.DPI:
        figure.set_dpi(drawing.DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return [text.get_window_extent(canvas.get_renderer()) for text in texts if text.get_text()]


def apart(texts, figure) -> bool:  # type: ignore[no-untyped-def]
    """Whether no two of the texts overlap and none leaves the figure."""
    found = boxes(texts, figure)
    inside = all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1 for box in found)
    return inside and not any(one.overlaps(two) for one, two in itertools.combinations(found, 2))


# Both formats


def test_png_and_pdf_are_what_they_say_and_the_same_every_time(store: SliceStore) -> None:
    both = {"a": model_for(store), "b": coded(store)}
    drawings = [
        figures.scenarios_figure(coded(store), store),
        figures.methods_figure(both, store),
        figures.codes_figure(coded(store), store),
        figures.bars_figure(rows_of(["ours", "theirs"])),
    ]
    assert drawings[1] == figures.methods_figure(both, store)
    for drawing_ in drawings:
        assert drawing_ is not None
        assert drawing_.files("figure") == {"figure.png": drawing_.png, "figure.pdf": drawing_.pdf}
        assert drawing_.png.startswith(b"\x89PNG\r\n\x1a\n")
        assert drawing_.pdf.startswith(b"%PDF-")
        assert b"/Type3" not in drawing_.pdf
        assert b"/FontFile2" in drawing_.pdf
        with Image.open(io.BytesIO(drawing_.png)) as picture:
            assert round(picture.info["dpi"][0]) == drawing.DPI
            assert picture.info.keys() <= {"dpi", "Title"}
            assert picture.width == pytest.approx(drawing.PAGE * drawing.DPI, rel=0.35)
            edge = np.asarray(picture.convert("L"))
        # Nothing reaches the border: nothing is cut off.
        assert all((line == 255).all() for line in (edge[0], edge[-1], edge[:, 0], edge[:, -1]))


def test_without_matplotlib_it_says_what_to_install(store: SliceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert refused(figures.bars_figure, rows_of(["m"])) == "ENV_EXTRA"
    assert refused(figures.scenarios_figure, model_for(store), store) == "ENV_EXTRA"


def test_a_users_own_settings_change_nothing() -> None:
    from matplotlib import rc_context

    plain = figures.bars_figure(rows_of(["m"]))
    with rc_context({"font.size": 20, "pdf.fonttype": 3, "axes.linewidth": 3}):
        assert figures.bars_figure(rows_of(["m"])) == plain


# What is shown


def test_the_slice_has_the_most_foreground_of_the_middle_third(store: SliceStore) -> None:
    from dataclasses import replace

    record = replace(store.record("b"), foreground_pixels=(0, 600, 100, 200, 300, 250, 700))
    assert scored_slices(record) == [1, 2, 3, 4, 5, 6]
    assert chosen.clearest_slice(record) == 4
    look = chosen.Look.read(store, "b", Wiring.of(model_for(store), store.preparation))
    assert look.subject.images.shape[0] == look.subject.truth.shape[0] == 1
    stored = torch.from_numpy(store.stack("b")[look.number])
    assert torch.equal(look.subject.images[0], stored)


def test_complete_patients_come_first(store: SliceStore) -> None:
    wiring = Wiring.of(model_for(store), store.preparation)
    assert chosen.subjects_to_show(store, "test", wiring, 1) == ["b"]
    assert chosen.subjects_to_show(store, "test", wiring, 5) == ["b", "a"]
    fewer = Wiring.of(model_for(store), store.preparation, ModalitySet.parse("T1,T2"))
    assert chosen.subjects_to_show(store, "test", fewer, 5) == ["a", "b"]


@pytest.mark.parametrize("most", range(1, 15))
def test_a_selection_has_patterns_of_every_size_and_no_pattern_twice(store: SliceStore, most: int) -> None:
    look = chosen.Look.read(store, "b", Wiring.of(model_for(store), store.preparation))
    patterns, every = chosen.scenarios_to_show(look, most)
    assert every == 14
    assert 0 < len(patterns) == len(set(patterns)) <= most
    sizes = [sum(pattern) for pattern in patterns]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == min(most, 3)


# Scenarios


def test_every_imputed_image_says_synthetic_and_every_given_one_is_marked(
    store: SliceStore, built: list[object]
) -> None:
    drawn = figures.scenarios_figure(model_for(store), store, label="ours")
    (figure,) = built
    grey, errors = pictures(figure, "gray"), pictures(figure, "magma")
    marks = [word for axes in grey for word in words(axes)]
    # Two patterns of each size: 2 x (3 + 2 + 1) imputed, 2 x (1 + 2 + 3) given, four true images.
    assert marks.count(SYNTHETIC) == len(errors) == 12
    assert marks.count("given") == 12
    assert [words(axes) for axes in grey].count([]) == 4
    for axes in grey:
        assert (SYNTHETIC in words(axes)) != (words(axes) in (["given"], []))
    assert "6 of 14 scenarios" in drawn.caption
    assert ENHANCEMENT_UNKNOWN in drawn.caption
    assert drawn.caption.endswith(f"{RESEARCH_USE_ONLY}.")


def test_three_contrasts_show_all_six_scenarios_and_nothing_about_enhancement(
    three: SliceStore, built: list[object]
) -> None:
    drawn = figures.scenarios_figure(model_for(three), three, patients=2)
    marks = [word for axes in pictures(built[0], "gray") for word in words(axes)]
    assert marks.count(SYNTHETIC) == 2 * 9
    assert "All 6 scenarios" in drawn.caption
    assert ENHANCEMENT_UNKNOWN not in drawn.caption
    assert apart(built[0].texts, built[0])


def test_errors_are_those_of_the_image_beside_them(three: SliceStore, built: list[object]) -> None:
    figures.scenarios_figure(model_for(three, "zeros"), three)
    look = chosen.Look.read(three, "s00", Wiring.of(model_for(three), three.preparation))
    first = pictures(built[0], "magma")[0].images[0].get_array()
    np.testing.assert_allclose(first, look.truth(1), atol=1e-6)


def test_contrasts_that_a_patient_lacks_are_imputed_without_error(store: SliceStore, built: list[object]) -> None:
    figures.scenarios_figure(model_for(store), store, patients=2)
    figure = built[0]
    marks = [words(axes) for axes in figure.axes]
    assert marks.count(["not acquired"]) == 1
    # Patient a: six patterns of three contrasts, nine errors, and T1Gd six times without.
    assert marks.count([SYNTHETIC]) == 12 + 9 + 6
    assert len(pictures(figure, "magma")) == 12 + 9


# Methods


def many(store: SliceStore, count: int) -> dict[str, ImputationModel]:
    return {f"Method {i} with a long_name, $10 {'steps' * (i % 3)}": model_for(store) for i in range(count)}


@pytest.mark.parametrize("count", [1, 4, 12])
def test_methods_stand_beside_the_truth_without_overlap(store: SliceStore, built: list[object], count: int) -> None:
    models = many(store, count)
    drawn = figures.methods_figure(models, store)
    (figure,) = built
    titles = [text for text in figure.texts if text.get_gid() == "column"]
    shown = [text.get_text().replace("\n", "").replace(" ", "") for text in titles]
    assert shown == ["truth", *(label.replace(" ", "") for label in models)]
    assert apart(figure.texts, figure)
    marks = [word for axes in figure.axes for word in words(axes)]
    assert marks.count(SYNTHETIC) == 2 * count
    assert sum(word.endswith(" dB") for word in marks) == 2 * count
    assert len(pictures(figure, "magma")) == 2 * count
    assert RESEARCH_USE_ONLY in drawn.caption
    assert ENHANCEMENT_UNKNOWN not in drawn.caption


def test_methods_are_compared_on_what_all_of_them_know(store: SliceStore, built: list[object]) -> None:
    fewer = build_model("mean", ModalitySet.parse("FLAIR,T2,PD"))
    figures.methods_figure({"mean": model_for(store), "fewer": fewer}, store)
    marks = [word for axes in built[0].axes for word in words(axes)]
    assert [marks.count(name) for name in ("T1", "T2", "FLAIR", "T1Gd", SYNTHETIC)] == [0, 1, 0, 0, 2]
    strange = build_model("mean", ModalitySet.parse("T1,PD"))
    assert refused(figures.methods_figure, {"strange": strange, "fewer": fewer}, store) == "CKPT_MISMATCH"


def test_psnr_is_that_of_the_whole_slice(store: SliceStore, built: list[object]) -> None:
    figures.methods_figure({"zeros": model_for(store, "zeros")}, store)
    printed = [word for axes in pictures(built[0], "magma") for word in words(axes)]
    look = chosen.Look.read(store, "b", Wiring.of(model_for(store), store.preparation))
    truth = look.subject.truth[0, 1]
    assert printed[0] == f"{float(psnr(torch.zeros_like(truth), truth)):.2f} dB"


def test_scenarios_of_ones_own_and_what_is_said_of_them(store: SliceStore, built: list[object]) -> None:
    wanted = [(ModalitySet.parse("T1,T2"), Modality.T1GD)]
    drawn = figures.methods_figure(many(store, 2), store, scenarios=wanted)
    marks = [word for axes in built[0].axes for word in words(axes)]
    assert [marks.count(name) for name in ("T1", "T2", SYNTHETIC)] == [1, 1, 2]
    assert ENHANCEMENT_UNKNOWN in drawn.caption
    impossible = [(ModalitySet.parse("T1,T2"), Modality.T2)]
    assert refused(figures.methods_figure, many(store, 1), store, scenarios=impossible) == "CONFIG"


def test_default_scenarios() -> None:
    four, pair = ModalitySet.parse("T1Gd,T1,T2,FLAIR"), ModalitySet.parse("T1,T1Gd")
    assert methods.default_scenarios(four, (True,) * 4) == [
        (ModalitySet.parse("T1"), Modality.T2),
        (ModalitySet.parse("T1Gd,T1,T2"), Modality.FLAIR),
    ]
    assert methods.default_scenarios(pair, (True, True)) == [(ModalitySet.parse("T1"), Modality.T1GD)]
    assert methods.default_scenarios(four, (True, True, True, False)) == [
        (ModalitySet.parse("T1"), Modality.T2),
        (ModalitySet.parse("T1Gd,T1"), Modality.T2),
    ]


def test_a_reconstruction_of_a_publication_says_so(store: SliceStore, built: list[object]) -> None:
    models = many(store, 1)
    kind = type("Rebuilt", (type(next(iter(models.values()))),), {"label": "rebuilt from an abstract"})
    models["rebuilt"] = kind(store.preparation.modalities, next(iter(models.values())).settings)
    assert "rebuilt from an abstract." in figures.methods_figure(models, store).caption


# Codes


def test_codes_are_drawn_as_colours_beside_the_true_one(store: SliceStore, built: list[object]) -> None:
    model = coded(store)
    drawn = figures.codes_figure(model, store)
    assert drawn is not None
    (figure,) = built
    colours = [
        axes.images[0].get_array() for axes in figure.axes if axes.images and axes.images[0].get_array().ndim == 3
    ]
    assert len(colours) == 7 * 2  # four channels: three as one colour, the fourth alone
    assert all(part.shape[2] == 3 and part.min() >= 0 and part.max() <= 1 for part in colours)
    assert len(pictures(figure, "magma")) == 6
    below = [text.get_text() for text in figure.texts if text.get_gid() == "below"]
    assert below[0] == "the slice, T1"
    assert all(text.endswith("% right") for text in below[1:])
    assert SYNTHETIC not in [word for axes in figure.axes for word in words(axes)]
    assert "no images of tissue" in drawn.caption
    assert "the complete set" in drawn.caption
    assert apart(figure.texts, figure)


def test_levels_become_colours_from_nought_to_one() -> None:
    first, second = codes.colours_of(torch.tensor([[[7]], [[0]], [[3]], [[2]]]), (8, 8, 4, 5))
    assert first.flatten().tolist() == [1, 0, 1]
    assert second.flatten().tolist() == [0.5, 0, 0]


def test_levels_off_and_right_are_counted_in_the_foreground(store: SliceStore) -> None:
    look = chosen.Look.read(store, "b", Wiring.of(model_for(store), store.preparation))
    true = torch.tensor([[[1, 2]], [[0, 0]]])
    wrong = torch.tensor([[[1, 0]], [[1, 3]]])
    found = codes.Coded(
        look, (4, 4), true, {(True,): wrong}, torch.tensor([[True, False]]), torch.zeros(8, 16), every=1, complete=True
    )
    assert found.off((True,)).tolist() == [[0.5, 2.5]]
    assert found.right((True,)) == 0.5


@pytest.mark.parametrize("condition", ["binary", "continuous"])
def test_models_without_codes_have_no_figure(store: SliceStore, condition: str) -> None:
    assert figures.codes_figure(model_for(store), store) is None
    assert figures.codes_figure(coded(store, condition=condition), store) is None


def test_a_model_that_knows_more_contrasts_says_that_its_code_is_of_fewer(store: SliceStore) -> None:
    drawn = figures.codes_figure(coded(store), store, judged=ModalitySet.parse("T1,T2"))
    assert drawn is not None
    assert "the contrasts at hand (T1, T2; the model knows more)" in drawn.caption
    assert "All 2 scenarios" in drawn.caption


# Bars


def rows_of(labels: list[str], *, lowest: float = 20.0, contrasts: str = FOUR) -> list[Row]:
    known = ModalitySet.parse(contrasts)
    return [
        Row(label, patient, patient, pattern_name(known, pattern), str(absent), "imputation", "slice", metric,
            (lowest + i + sum(pattern)) / {"PSNR": 1, "SSIM": 100, "MAE": 1000}[metric], 10)
        for i, label in enumerate(labels)
        for patient in ("a", "b")
        for pattern in strict_subsets((True,) * len(known))
        for absent in known.absent(pattern)
        for metric in ("PSNR", "SSIM", "MAE")
    ]  # fmt: skip


@pytest.mark.parametrize("metric", ["PSNR", "SSIM", "MAE"])
def test_twelve_methods_do_not_overlap(built: list[object], metric: str) -> None:
    labels = [f"Method {i}, $whose name is$ as long_as_some_are_{'x' * 20 * (i % 3)}" for i in range(12)]
    scale = {"PSNR": 1, "SSIM": 100, "MAE": 1000}[metric]
    intervals = {label: ((19 + i) / scale, (23 + i) / scale) for i, label in enumerate(labels)}
    drawn = figures.bars_figure(rows_of(labels), metric=metric, intervals=intervals)
    (figure,) = built
    assert len(figure.axes) == 3
    names = figure.axes[0].get_yticklabels()
    assert len(names) == 12
    assert apart(names, figure)
    for axes in figure.axes:
        values = boxes(axes.texts, figure)
        assert len(values) == 12
        assert all(box.x1 <= axes.get_window_extent().x1 + 1 for box in values)
        ticks = boxes(axes.get_xticklabels(), figure)
        assert not any(one.overlaps(two) for one, two in itertools.combinations(ticks, 2))
    assert apart([*names, *figure.texts, *(axes.xaxis.label for axes in figure.axes)], figure)
    assert f"{'lower' if metric == 'MAE' else 'higher'} is better" in drawn.caption
    assert ENHANCEMENT_UNKNOWN in drawn.caption


def test_looks_differ_for_fourteen_methods_and_more() -> None:
    assert len({drawing.look_of(i) for i in range(14)}) == 14
    assert drawing.look_of(3) != drawing.look_of(10)


@pytest.mark.parametrize(("lowest", "starts"), [(20.0, True), (1.0, False)])
def test_an_axis_that_does_not_start_at_zero_says_so(built: list[object], lowest: float, starts: bool) -> None:
    figures.bars_figure(rows_of([str(i) for i in range(12)], lowest=lowest))
    for axes in built[0].axes:
        assert ("axis starts at" in axes.get_xlabel()) == starts == (axes.get_xlim()[0] > 0)


def test_values_are_means_and_whiskers_are_the_intervals(built: list[object]) -> None:
    rows = rows_of(["ours", "theirs"], contrasts="T1,T2")
    drawn = figures.bars_figure(rows, intervals={"ours": (20.5, 21.5)})
    (axes,) = built[0].axes  # two contrasts know one-to-one alone
    assert [text.get_text() for text in axes.texts] == ["21.00", "22.00"]
    (whisker,) = axes.collections[0].get_segments()
    assert whisker[:, 0].tolist() == [20.5, 21.5]
    assert len(axes.collections) == 2
    assert "Whiskers" in drawn.caption
    assert "Whiskers" not in figures.bars_figure(rows).caption


def test_no_score_is_refused() -> None:
    assert refused(figures.bars_figure, rows_of(["m"]), region="volume") == "CONFIG"


# Type


@pytest.mark.parametrize("text", ["a few short words", "averyveryverylongwordindeed", "with-dashes_and_such/parts", ""])
def test_wrapped_lines_fit_and_lose_nothing(text: str) -> None:
    lines = drawing.wrapped(text, 0.5, 6.5)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(drawing.text_width(line, 6.5) <= 0.5 for line in lines)


def test_old_names_are_still_there(three: SliceStore, tmp_path: Path) -> None:
    examples = figures.examples_of(model_for(three), three)
    assert figures.examples_figure(examples, "mean").startswith(b"\x89PNG")
    assert figures.scores_figure(rows_of([str(i) for i in range(9)])).startswith(b"\x89PNG")
