"""Scores against torchmetrics, against hand-made cases, and what a mask promises."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.functional.regression import mean_absolute_error

from codebrain.metrics import MSE_FLOOR, PSNR_CAP_DB, mae, psnr, ssim, ssim_map

SIZES = [(11, 11), (16, 24), (45, 37), (182, 218)]


def pair(shape: tuple[int, ...], noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth truth with an empty border and a noisy copy of it."""
    chance = torch.Generator().manual_seed(sum(shape))
    h, w = shape[-2:]
    waves = torch.sin(torch.linspace(0, 6, h))[:, None] * torch.cos(torch.linspace(0, 5, w))
    truth = (waves.clamp_min(0) + 0.2 * torch.rand(shape, generator=chance)).clamp(0, 1)
    truth[..., : h // 4, :] = 0
    return (truth + noise * torch.randn(shape, generator=chance)).clamp(0, 1), truth


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("data_range", [1.0, 2.5])
def test_agrees_with_torchmetrics_slice_by_slice(size: tuple[int, int], data_range: float) -> None:
    prediction, truth = pair((3, *size))
    for i in range(3):
        p, t = prediction[i, None, None], truth[i, None, None]
        theirs = [
            peak_signal_noise_ratio(p, t, data_range=data_range),
            structural_similarity_index_measure(p, t, data_range=data_range),
            mean_absolute_error(p, t) / data_range,
        ]
        ours = [f(prediction, truth, data_range=data_range)[i] for f in (psnr, ssim, mae)]
        torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES[:3])
def test_ssim_map_is_that_of_torchmetrics_in_full_precision(size: tuple[int, int]) -> None:
    prediction, truth = (x.double() for x in pair((2, *size)))
    _, theirs = structural_similarity_index_measure(
        prediction[:, None], truth[:, None], data_range=1.0, return_full_image=True
    )
    # torchmetrics builds its window in single precision.
    torch.testing.assert_close(ssim_map(prediction, truth), theirs[:, 0], atol=1e-6, rtol=1e-6)


def test_leading_axes_are_kept() -> None:
    prediction, truth = pair((2, 3, 4, 16, 16))
    for metric in (psnr, ssim, mae):
        assert metric(prediction, truth).shape == (2, 3, 4)
        assert metric(prediction, truth, per="volume").shape == (2, 3)
        assert metric(prediction[0, 0, 0], truth[0, 0, 0]).shape == ()


def test_known_values() -> None:
    truth = torch.zeros(2, 12, 12)
    prediction = torch.stack([torch.full((12, 12), 0.1), torch.full((12, 12), 0.01)])
    torch.testing.assert_close(psnr(prediction, truth), torch.tensor([20.0, 40.0]))
    torch.testing.assert_close(mae(prediction, truth), torch.tensor([0.1, 0.01]))
    # Constant images: only the brightness term is left, C1 / (mean^2 + C1).
    brightness_only = torch.tensor([1e-4 / 1.01e-2, 0.5])
    torch.testing.assert_close(ssim(prediction, truth), brightness_only, atol=1e-4, rtol=1e-3)


def test_psnr_of_a_volume_is_that_of_the_joined_error() -> None:
    truth = torch.zeros(2, 12, 12)
    prediction = torch.stack([torch.full((12, 12), 0.1), torch.full((12, 12), 0.3)])
    joined = psnr(prediction, truth, per="volume")
    assert joined.item() == pytest.approx(-10 * torch.log10(torch.tensor((0.01 + 0.09) / 2)).item(), abs=1e-5)
    assert joined < psnr(prediction, truth).mean()
    torch.testing.assert_close(mae(prediction, truth, per="volume"), torch.tensor(0.2))


def test_identical_images_count_as_the_cap() -> None:
    _, truth = pair((2, 16, 16))
    assert psnr(truth, truth).tolist() == pytest.approx([PSNR_CAP_DB] * 2)
    assert pytest.approx(100.0) == PSNR_CAP_DB
    assert psnr(truth + MSE_FLOOR, truth).isfinite().all()
    assert ssim(truth, truth).tolist() == pytest.approx([1.0, 1.0])
    assert mae(truth, truth).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("metric", [psnr, mae])
def test_outside_the_mask_nothing_counts(metric) -> None:
    prediction, truth = pair((2, 16, 16))
    mask = torch.zeros(2, 16, 16, dtype=torch.bool)
    mask[:, 4:12, 5:13] = True
    inside = metric(prediction[:, 4:12, 5:13], truth[:, 4:12, 5:13])
    spoiled = torch.where(mask, prediction, torch.nan)
    torch.testing.assert_close(metric(spoiled, truth, mask=mask), inside)
    joined = metric(spoiled, truth, mask=mask, per="volume")
    torch.testing.assert_close(joined, metric(prediction[:, 4:12, 5:13], truth[:, 4:12, 5:13], per="volume"))


def test_masked_ssim_is_the_map_averaged_in_the_mask() -> None:
    prediction, truth = pair((2, 24, 24))
    mask = torch.zeros(2, 24, 24, dtype=torch.bool)
    mask[0, :7, 3:9] = True
    mask[1, 10:, 10:] = True
    similarity = ssim_map(prediction, truth)
    expected = torch.stack([similarity[i][mask[i]].mean() for i in range(2)])
    torch.testing.assert_close(ssim(prediction, truth, mask=mask), expected)
    torch.testing.assert_close(ssim(prediction, truth, mask=mask, per="volume"), similarity[mask].mean())


def test_one_mask_serves_every_contrast() -> None:
    prediction, truth = pair((4, 3, 16, 16))
    mask = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    for metric in (psnr, ssim, mae):
        each = torch.stack([metric(prediction[i], truth[i], mask=mask) for i in range(4)])
        torch.testing.assert_close(metric(prediction, truth, mask=mask), each)


def test_an_empty_mask_has_no_score() -> None:
    prediction, truth = pair((2, 16, 16))
    mask = torch.stack([torch.zeros(16, 16), torch.ones(16, 16)]).bool()
    for metric in (psnr, ssim, mae):
        assert metric(prediction, truth, mask=mask).isnan().tolist() == [True, False]


def test_ssim_refuses_images_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(torch.zeros(10, 64), torch.zeros(10, 64))


def test_better_images_score_better() -> None:
    near, truth = pair((1, 45, 37), noise=0.05)
    far, _ = pair((1, 45, 37), noise=0.2)
    assert psnr(near, truth) > psnr(far, truth)
    assert ssim(near, truth) > ssim(far, truth)
    assert mae(near, truth) < mae(far, truth)
