from __future__ import annotations

import builtins

import pytest
import torch

from codebrain.data.augment import Augmentation
from codebrain.errors import EnvironmentRefused, UsageError

NAMES = ["none", "flips", "light", "released"]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Eight samples of three contrasts: noise in a box, half of it, and one that is absent."""
    first = torch.zeros(8, 1, 32, 32)
    first[:, :, 8:24, 10:22] = torch.rand(8, 1, 16, 12, generator=_generator(9))
    return torch.cat([first, first * 0.5, torch.zeros_like(first)], dim=1)


@pytest.mark.parametrize("name", NAMES)
def test_same_state_same_batch(name: str, images: torch.Tensor) -> None:
    augment = Augmentation.named(name)
    assert torch.equal(augment(images, _generator(1)), augment(images, _generator(1)))
    if name != "none":
        assert not torch.equal(augment(images, _generator(1)), augment(images, _generator(2)))


@pytest.mark.parametrize("name", NAMES)
def test_range_shape_and_absent_contrasts(name: str, images: torch.Tensor) -> None:
    for seed in range(5):
        out = Augmentation.named(name)(images, _generator(seed))
        assert out.shape == images.shape
        assert out.min() >= 0 and out.max() <= 1
        assert not out[:, 2].any()


@pytest.mark.parametrize("name", ["none", "flips", "released"])
def test_contrasts_move_alike(name: str, images: torch.Tensor) -> None:
    out = Augmentation.named(name)(images, _generator(3))
    torch.testing.assert_close(out[:, 1], out[:, 0] * 0.5)


def test_light_moves_alike_and_changes_contrast_per_channel(images: torch.Tensor) -> None:
    seen = Augmentation.named("light")(images, _generator(3))
    assert not torch.allclose(seen[:, 1], seen[:, 0] * 0.5)
    assert torch.equal(seen[:, 1] > 0, seen[:, 0] > 0)


def test_none_is_nothing(images: torch.Tensor) -> None:
    assert torch.equal(Augmentation.named("none")(images, _generator()), images)


def test_flips_are_flips(images: torch.Tensor) -> None:
    out = Augmentation.named("flips")(images, _generator(4))
    turned = [images, images.flip(-1), images.flip(-2), images.flip(-1).flip(-2)]
    kinds = [[torch.equal(out[i], t[i]) for t in turned].index(True) for i in range(len(images))]
    assert len(set(kinds)) >= 3


def test_about_half_is_changed() -> None:
    images = torch.rand(400, 1, 8, 8, generator=_generator())
    out = Augmentation(left_right=0.5)(images, _generator(1))
    changed = (out != images).flatten(1).any(dim=1).float().mean()
    assert 0.4 < changed < 0.6


def test_quarter_turns_are_exact() -> None:
    images = torch.rand(60, 2, 8, 8, generator=_generator())
    out = Augmentation(quarter_turns=1.0)(images, _generator(1))
    kinds = {next(k for k in range(4) if torch.equal(out[i], images[i].rot90(k, (-2, -1)))) for i in range(60)}
    assert kinds == {1, 2, 3}
    with pytest.raises(UsageError, match="square"):
        Augmentation(quarter_turns=1.0)(torch.zeros(1, 1, 8, 16), _generator())


def test_a_rotation_keeps_angles_on_slices_that_are_not_square() -> None:
    """A round blob stays as it is when turned about its own centre; a bar turns and keeps its area."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(32.0), indexing="ij")
    blob = (-((rows - 31.5) ** 2 + (columns - 15.5) ** 2) / 30).exp()[None, None]
    out = Augmentation(affine=1.0, degrees=40.0)(blob, _generator(2))
    assert (out - blob).abs().max() < 0.02
    bar = ((columns - 15.5).abs() < 2).float()[None, None] * ((rows - 31.5).abs() < 10).float()
    turned = Augmentation(affine=1.0, degrees=40.0)(bar, _generator(2))
    assert turned.sum() == pytest.approx(float(bar.sum()), rel=0.05)
    assert (turned - bar).abs().sum() > 10


def test_scaling_and_shift_have_the_stated_size() -> None:
    square = torch.zeros(1, 1, 64, 64)
    square[..., 24:40, 24:40] = 1
    larger = Augmentation(affine=1.0, scale=(1.5, 1.5))(square, _generator())
    assert float(larger.sum()) == pytest.approx(1.5**2 * 256, rel=0.05)
    shifted = Augmentation(affine=1.0, translate=0.1)(square.repeat(200, 1, 1, 1), _generator())
    columns = torch.arange(64.0)
    centre = (shifted.sum(dim=(1, 2)) * columns).sum(dim=1) / shifted.sum(dim=(1, 2, 3))
    moved = (centre - 31.5).abs()
    assert 5.5 < moved.max() <= 6.4 + 1e-3


def test_gamma_keeps_the_ends() -> None:
    images = torch.tensor([0.0, 0.25, 1.0]).reshape(1, 1, 1, 3).repeat(300, 1, 1, 1)
    out = Augmentation(gamma=1.0, gamma_range=(0.8, 1.25))(images, _generator())
    assert not out[..., 0].any()
    assert (out[..., 2] == 1).all()
    assert out[..., 1].min() >= 0.25**1.25 and out[..., 1].max() <= 0.25**0.8


def test_the_global_state_is_left_alone(images: torch.Tensor) -> None:
    before = torch.random.get_rng_state()
    Augmentation.named("released")(images, _generator(1))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_a_batch_is_changed_as_in_the_whole(name: str, images: torch.Tensor) -> None:
    augment = Augmentation.named(name)
    whole, part = augment(images, _generator(3)), augment(images[2:5], _generator(3), first=2, of=len(images))
    torch.testing.assert_close(part, whole[2:5], rtol=0, atol=1e-6)


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="flips"):
        Augmentation.named("heavy")


def test_without_kornia_a_sentence(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("kornia"):
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", absent)
    Augmentation.named("light")(images, _generator())
    with pytest.raises(EnvironmentRefused, match=r"kornia.*codebrain-mri\[train\]"):
        Augmentation.named("released")(images, _generator())
