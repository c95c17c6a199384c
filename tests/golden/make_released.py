"""Writes ``released.safetensors``: what the released code answers, for test_released.py.

Run by hand beside a checkout of github ycwu1997/CodeBrain (commit 0510304, MIT), never in CI:
``python tests/golden/make_released.py CHECKOUT/CodeBrain/code``. Only numbers are kept: random weights of tiny
networks, random images, and the answers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

CASES = {
    "ixi": (3, 2, 1, (8, 8, 8, 5, 5, 5)),
    "brats": (4, 1, 2, (8, 8, 8, 5, 5, 5)),
    "other": (3, 1, 3, (4, 7, 2)),
}


def main(code: str) -> None:
    sys.path.insert(0, code)
    from lib.codebrain import CodeBrain, CodeBrain_Grader  # type: ignore[import-not-found]

    kept: dict[str, torch.Tensor] = {}
    for name, (contrasts, width, depth, levels) in CASES.items():
        torch.manual_seed(len(name))
        args = argparse.Namespace(fsq_levels=list(levels), naf_dim=width, naf_depth=depth)
        sizes = argparse.Namespace(INPUT_C=contrasts, OUTPUT_C=contrasts)
        rec, grad = CodeBrain(args, sizes).eval(), CodeBrain_Grader(args, sizes).eval()
        for part in (rec, grad):
            for key, value in part.named_parameters():
                if key.endswith(("beta", "gamma")):
                    value.data.normal_(0, 0.5)
                if "head" in key or "output_proj" in key:
                    value.data.mul_(8)
        images = torch.rand(2, contrasts, 16, 24)
        present = torch.zeros(2, contrasts, dtype=torch.bool)
        present[0, 0], present[1, 1:] = True, True
        kept |= {f"{name}/images": images, f"{name}/present": present.float()}
        kept |= {f"{name}/weights/rec_model/{k}": v for k, v in rec.state_dict().items()}
        kept |= {f"{name}/weights/grad_model/{k}": v for k, v in grad.state_dict().items()}
        with torch.no_grad():
            incomplete = images * present[:, :, None, None]
            kept[f"{name}/reconstruction"], indices = rec(incomplete, images)
            kept[f"{name}/indices"] = indices.int()
            level = torch.stack([(bits.sigmoid() > 0.5).sum(1) for bits in grad(incomplete)], 1)
            half = torch.tensor([n // 2 for n in levels])[:, None, None]
            decoded = rec.decoder((level - half).float() / half, rec.prior_encoder(incomplete))
            kept[f"{name}/levels"], kept[f"{name}/imputed"] = level.int(), decoded.clamp(0, 1)
    save_file({k: v.contiguous() for k, v in kept.items()}, Path(__file__).with_name("released.safetensors"))


if __name__ == "__main__":
    main(sys.argv[1])
