"""The published numbers are complete where they claim to be, agree with each other and name their source."""

from __future__ import annotations

import pytest

from codebrain.benchmark.paper import DATASETS, TABLES, Published, published
from codebrain.errors import UsageError
from codebrain.vocabulary import Modality

EVERYTHING = [number for table in TABLES for dataset in DATASETS for number in published(table, dataset)]
RANGE = {"PSNR": (20, 40), "SSIM": (80, 100), "MAE": (5, 40), "Dice": (0, 100)}


def only(numbers: list[Published], **facts: str) -> float:
    (found,) = (n for n in numbers if all(getattr(n, name) == value for name, value in facts.items()))
    return found.value


@pytest.mark.parametrize(
    ("dataset", "psnr", "ssim", "mae"), [("IXI", 29.50, 93.05, 17.57), ("BraTS", 25.31, 90.49, 21.01)]
)
def test_codebrain_in_table_2(dataset: str, psnr: float, ssim: float, mae: float) -> None:
    for metric, value in (("PSNR", psnr), ("SSIM", ssim), ("MAE", mae)):
        assert only(published("2", dataset), method="CodeBrain", given="any", metric=metric) == value


@pytest.mark.parametrize(("dataset", "one", "many"), [("IXI", 6, 3), ("BraTS", 12, 16)])
def test_the_means_of_table_2_are_those_of_its_cells(dataset: str, one: int, many: int) -> None:
    numbers = published("2", dataset)
    assert len(numbers) == 6 * 3 * 3
    for number in numbers:
        if number.given == "any":
            parts = [only(numbers, method=number.method, metric=number.metric, given=g) for g in ("one", "many")]
            assert number.value == pytest.approx((one * parts[0] + many * parts[1]) / (one + many), abs=0.011)


@pytest.mark.parametrize("given", ["one", "many"])
def test_table_1_averages_to_table_2(given: str) -> None:
    cells = [n.value for n in published("1", "IXI") if n.given == given]
    mean = only(published("2", "IXI"), method="CodeBrain", metric="PSNR", given=given)
    assert sum(cells) / len(cells) == pytest.approx(mean, abs=0.006)


@pytest.mark.parametrize("modality", ["T1", "T2", "PD"])
def test_table_1_averages_to_its_own_means(modality: str) -> None:
    numbers = [n for n in published("1", "IXI") if n.modality == modality]
    cells = [n.value for n in numbers if n.pattern]
    assert len(cells) == 3
    assert only(numbers, given="any") == pytest.approx(sum(cells) / 3, abs=0.006)


@pytest.mark.parametrize("method", ["Zeros", "MMT", "Zhang", "MMHVAE", "CodeBrain"])
def test_the_means_of_table_4_are_those_of_its_contrasts(method: str) -> None:
    numbers = [n for n in published("4", "BraTS") if n.method == method]
    cells = [n.value for n in numbers if n.modality]
    assert len(cells) == 4
    assert only(numbers, modality="") == pytest.approx(sum(cells) / 4, abs=0.006)


@pytest.mark.parametrize("task", ["imputation", "reconstruction"])
@pytest.mark.parametrize("metric", ["PSNR", "SSIM", "MAE"])
def test_the_means_of_the_released_log_are_those_of_its_cells(task: str, metric: str) -> None:
    numbers = [n for n in published("released", "IXI") if n.task == task and n.metric == metric]
    cells = [n.value for n in numbers if n.pattern]
    assert len(cells) == 9
    assert only(numbers, given="any") == pytest.approx(sum(cells) / 9, abs=1e-3)


@pytest.mark.parametrize("number", EVERYTHING, ids=lambda n: f"{n.table}-{n.dataset}-{n.method}-{n.metric}")
def test_every_number_is_plausible_and_names_its_source(number: Published) -> None:
    low, high = RANGE[number.metric]
    assert low <= number.value <= high
    assert "CVPR 2026" in number.source or "released code" in number.source
    assert number.task in ("imputation", "reconstruction", "segmentation")
    for name in filter(None, [*number.pattern.split("+"), number.modality]):
        assert name == str(Modality.parse(name))
    assert number.given != "one" or "+" not in number.pattern
    assert not number.pattern or number.modality not in number.pattern.split("+")


def test_what_could_not_be_reached_is_left_out() -> None:
    assert published("5", "IXI") == published("figure 6", "IXI") == []


def test_what_the_authors_say_themselves_is_told_apart() -> None:
    assert not any(n.second_hand for table in ("2", "4", "released") for d in DATASETS for n in published(table, d))
    assert all(n.second_hand for table in ("1", "3", "loss") for n in published(table, "IXI"))


def test_a_table_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError):
        published("6", "IXI")
    with pytest.raises(UsageError):
        published("2", "OASIS")
