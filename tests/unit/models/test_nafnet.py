from __future__ import annotations

import torch

from codebrain.models import build_model
from codebrain.models.nafnet import NafNet
from codebrain.nn.batch import Batch
from codebrain.nn.naf import NafDecoder
from codebrain.vocabulary import ModalitySet


def small(**settings: object) -> NafNet:
    torch.manual_seed(0)
    model = build_model("nafnet", ModalitySet.parse("T1,T2,PD"), {"width": 2, "depth": 1, **settings})
    assert isinstance(model, NafNet)
    return model


def batch(available: list[list[int]], present: list[list[int]]) -> Batch:
    there = torch.tensor(available).bool()
    stack = torch.rand(len(available), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Batch(stack * there[:, :, None, None], there, torch.tensor(present).bool())


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def encoder_input(model: NafNet, one: Batch) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model(one.images, one.present)
    handle.remove()
    return seen[0]


def test_size_at_the_width_of_codebrain() -> None:
    """132.5 M for four contrasts: CodeBrain's common encoder and decoder, four mask channels more, no code.

    A block of c channels holds B(c) = 7 c^2 + 33 c. With w = 96 and m = 4:
    encoder 9 * 8 w + w + B(w) + (8 w^2 + 2 w) + B(2w) + (32 w^2 + 4 w) + B(4w) + (128 w^2 + 8 w) + 6 B(8w);
    decoder 8w * 16w + 16w + 6 B(16w) + (256 w^2 + 16 w) + B(4w) + (32 w^2 + 8 w) + B(2w) + (8 w^2 + 4 w) + B(w)
    + 9 * 4 w + 4. CodeBrain's own are 27,854,784 (four input channels less: 9 * 4 w) and 104,695,972 (six code
    channels more: 6 * 16 w).
    """
    with torch.device("meta"):
        model = build_model("nafnet", ModalitySet.parse("FLAIR,T1,T2,T1Gd"))
        three = build_model("nafnet", ModalitySet.parse("T1,T2,PD"))
        codebrain = build_model("codebrain", ModalitySet.parse("FLAIR,T1,T2,T1Gd"))
    assert count(model.encoder) == 27_858_240 == count(codebrain.common_encoder) + 9 * 4 * 96
    assert count(model.decoder) == 104_686_756 == count(codebrain.decoder) - 6 * 16 * 96
    assert count(model) == 132_544_996
    assert count(three) == 132_542_403


def test_a_decoder_without_code_reads_the_common_features() -> None:
    torch.manual_seed(0)
    decoder = NafDecoder(3, code_channels=0, width=2, depth=1)
    common = torch.rand(2, 2, 2, 16)
    assert decoder(None, common).shape == (2, 3, 16, 16)
    assert torch.equal(decoder(None, common), decoder(torch.zeros(2, 2, 2, 0), common))


def test_the_mask_is_one_where_a_contrast_is_given() -> None:
    model, one = small(), batch([[1, 1, 1], [1, 1, 1]], [[1, 0, 0], [0, 1, 1]])
    seen = encoder_input(model, one)
    assert torch.equal(seen[:, 3:].amin((2, 3)), one.present.float())
    assert torch.equal(seen[:, 3:].amax((2, 3)), one.present.float())
    assert torch.equal(seen[:, :3], one.incomplete)


def test_an_empty_contrast_given_is_not_a_missing_one() -> None:
    model, one = small(), batch([[1, 1, 0]], [[1, 0, 0]])
    missing = model(one.images, one.present)[:, 1]
    empty = model(one.images, torch.tensor([[True, False, True]]))[:, 1]
    assert not torch.equal(missing, empty)


def test_absent_contrasts_weigh_twenty_and_present_five() -> None:
    model, one = small(), batch([[1, 1, 1]], [[1, 0, 0]])
    loss = model.loss("generator", one, None, stage="training", progress=0.0)
    assert torch.allclose(loss.total, -20 * loss.parts["psnr_absent"] - 5 * loss.parts["psnr_present"])
    error = (model._candidate(one.images, one.present) - one.images).square().mean((0, 2, 3))
    assert torch.allclose(-loss.parts["psnr_absent"], 10 * (error[1:] + 1e-8).log10().mean(), atol=1e-4)
    assert torch.allclose(-loss.parts["psnr_present"], 10 * (error[0] + 1e-8).log10(), atol=1e-4)


def test_a_contrast_without_truth_trains_nothing() -> None:
    model, one = small(), batch([[1, 1, 0], [1, 1, 0]], [[1, 0, 0], [0, 1, 0]])
    model.loss("generator", one, None, stage="training", progress=0.0).total.backward()
    last = model.decoder.stages[-1].weight.grad
    assert (last[2] == 0).all() and (last[:2] != 0).any()


def test_every_weight_belongs_to_the_one_player() -> None:
    model = small()
    players = model.players("training")
    assert list(players) == ["generator"]
    assert set(players["generator"].parameters()) == set(model.parameters())


def test_training_lowers_the_loss() -> None:
    model, one = small(), batch([[1, 1, 1], [1, 1, 1]], [[1, 0, 0], [0, 1, 1]])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = model.loss("generator", one, None, stage="training", progress=0.0)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(loss.total.item())
    assert losses[-1] < losses[0]


def test_bfloat16_stays_close_to_float32() -> None:
    model, one = small().eval(), batch([[1, 1, 1]], [[1, 0, 0]])
    with torch.no_grad():
        exact = model(one.images, one.present)
        with torch.autocast("cpu", torch.bfloat16):
            short = model(one.images, one.present)
    assert short.dtype == torch.float32
    assert (exact - short).abs().max() < 0.02
