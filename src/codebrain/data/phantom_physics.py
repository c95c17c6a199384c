"""Physics of the phantom: relaxation of tissues, timings of sequences, signal equations, what a scanner adds.

Times in milliseconds, proton density relative to water, gadolinium in mmol/l.

Signal equations (Source: Haacke et al., Magnetic Resonance Imaging: Physical Principles and Sequence Design;
Bernstein, King and Zhou, Handbook of MRI Pulse Sequences):

- spin echo (T1, T2, PD): ``S = PD (1 - exp(-TR/T1)) exp(-TE/T2)``
- spoiled gradient echo (T1): ``S = PD sin(a) (1 - E1) / (1 - cos(a) E1) exp(-TE/T2)``, ``E1 = exp(-TR/T1)``
- inversion recovery, magnitude (FLAIR, MPRAGE-like T1): ``S = PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)``
- gadolinium: ``1/T1' = 1/T1 + r1 C``, ``1/T2' = 1/T2 + r2 C``

Published values that bound the random ones:

- Stanisz et al., Magnetic Resonance in Medicine 2005, 54:507-512: white matter T1 884 / 1084 ms and T2 72 /
  69 ms, grey matter T1 1124 / 1820 ms and T2 95 / 99 ms at 1.5 / 3 T.
- Wansapura et al., Journal of Magnetic Resonance Imaging 1999, 9:531-538: at 3 T white matter T1 832 ms, T2
  about 80 ms; grey matter T1 1331 ms, T2 about 110 ms.
- Bojorquez et al., Magnetic Resonance Imaging 2017, 35:69-80 (review at 3 T): white matter T1 728-1735 ms,
  grey matter 968-1815 ms. Assländer, 2024, arXiv:2409.05318: T1 of white matter at 3 T is reported from 0.6
  to 1.1 s.
- Kwan, Evans and Pike, IEEE Trans Med Imaging 1999, 18:1085-1097 (the BrainWeb simulator, 1.5 T): white
  matter T1 500, T2 70 ms, PD 0.77; grey matter 833, 83 ms, 0.86; fluid 2569, 329 ms, 1.
- Whittall et al., Magnetic Resonance in Medicine 1997, 37:34-43: water content of white matter about 0.71,
  grey matter about 0.83.
- Rooney et al., Magnetic Resonance in Medicine 2007, 57:308-318: T1 of cerebrospinal fluid about 4.3 s at
  every field.
- Rohrer et al., Invest Radiol 2005, 40:715-724: r1 of gadolinium agents in plasma 3 to 6 per mmol/l and
  second.

Simplified: no k-space, no slice profile, no magnetisation transfer, no flow beyond a lost spin-echo signal in
vessels, no motion, one echo per contrast, T2 also for gradient echoes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from codebrain.data.phantom_anatomy import Shape, smooth_field
from codebrain.vocabulary import Modality

Array = NDArray[np.float32]

R2_OVER_R1 = 1.25
"""Transverse over longitudinal relaxivity of gadolinium agents (Rohrer 2005: 1.1 to 1.5)."""


@dataclass(frozen=True)
class Tissue:
    """One tissue: relaxation times in ms, proton density, gadolinium taken up in mmol/l."""

    t1: float
    t2: float
    pd: float
    gadolinium: float = 0.0
    flows: bool = False


def draw_tissues(generator: np.random.Generator, field_t: float) -> dict[str, Tissue]:
    """Random relaxation of every tissue at 1.5 or 3 T, within the published ranges above."""
    draw = generator.uniform
    low, high = (560.0, 884.0) if field_t < 2 else (728.0, 1000.0)
    white_t1, ratio = draw(low, high), draw(1.42, 1.70)
    white_t2, grey_over = draw(66, 82), draw(1.14, 1.28)
    white_pd = draw(0.68, 0.74)
    blood = draw(0.7, 1.6)
    white = Tissue(white_t1, white_t2, white_pd, 0.018 * blood)
    grey = Tissue(white_t1 * ratio, white_t2 * grey_over, draw(0.80, 0.86), 0.035 * blood)
    return {
        "white": white,
        "grey": grey,
        "fluid": Tissue(draw(3600, 4600), draw(500, 1800), 1.0),
        "vessel": Tissue(draw(1400, 1900), draw(120, 250), 0.85, blood, flows=True),
        "dura": Tissue(draw(800, 1100), draw(40, 60), 0.6, draw(0.3, 0.9)),
        "bone": Tissue(draw(400, 700), draw(1, 4), 0.12),
        "marrow": Tissue(draw(280, 420), draw(45, 70), draw(0.5, 0.75), 0.03),
        "fat": Tissue(draw(280, 400), draw(55, 85), draw(0.65, 0.9), 0.01),
        "muscle": Tissue(draw(900, 1400), draw(30, 45), draw(0.75, 0.85), 0.15),
        "skin": Tissue(draw(700, 1000), draw(30, 45), draw(0.6, 0.75), 0.15),
        "air": Tissue(1000.0, 1.0, 0.0),
    }


def draw_lesion_tissues(generator: np.random.Generator, white: Tissue) -> dict[str, Tissue]:
    """Relaxation of lesions, as multiples of the patient's white matter.

    The multiples are set so that lesions look as they do on scans (plaques and oedema bright on T2, FLAIR and PD
    and dark on T1, necrosis close to fluid); they are choices, not measurements.
    """
    draw = generator.uniform
    leak = draw(0.25, 0.8)

    def scaled(t1: float, t2: float, pd: float, gadolinium: float = 0.0) -> Tissue:
        return Tissue(white.t1 * t1, white.t2 * t2, pd, gadolinium)

    return {
        "plaque": scaled(draw(1.35, 1.9), draw(1.6, 2.3), draw(0.80, 0.90), 0.03),
        "active": scaled(draw(1.4, 1.8), draw(1.8, 2.4), draw(0.82, 0.92), leak),
        "black_hole": scaled(draw(2.0, 3.0), draw(2.2, 3.2), draw(0.86, 0.95)),
        "oedema": scaled(draw(1.35, 1.8), draw(1.6, 2.2), draw(0.80, 0.90), 0.02),
        "rim": scaled(draw(1.4, 1.9), draw(1.4, 2.0), draw(0.80, 0.90), leak * 1.2),
        "necrosis": Tissue(draw(2200, 3800), draw(180, 380), draw(0.92, 0.98), draw(0.0, 0.03)),
    }


@dataclass(frozen=True)
class Sequence:
    """One contrast's acquisition.

    Attributes:
        kind: ``spin_echo``, ``gradient_echo`` or ``inversion``.
        tr: repetition time, ms.
        te: echo time, ms.
        ti: inversion time, ms (inversion only).
        flip_deg: flip angle (gradient echo only).
        relaxivity: r1 of the agent, per mmol/l and ms; 0 without agent.
    """

    kind: str
    tr: float
    te: float
    ti: float = 0.0
    flip_deg: float = 90.0
    relaxivity: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def draw_sequences(generator: np.random.Generator, field_t: float, fluid_t1: float) -> dict[Modality, Sequence]:
    """Random timings of the five contrasts, within clinical ranges; FLAIR nulls the patient's fluid."""
    draw = generator.uniform
    t1 = _draw_t1(generator, field_t, fluid_t1)
    flair_tr = draw(7000, 11000)
    same = generator.random() < 0.7
    after = t1 if same else _draw_t1(generator, field_t, fluid_t1)
    after = replace(after, relaxivity=draw(3.5, 5.0) / 1000)
    flair_ti = null_ti(flair_tr, fluid_t1) * draw(0.92, 1.03)
    return {
        Modality.T1: t1,
        Modality.T2: Sequence("spin_echo", tr=draw(3000, 6500), te=draw(78, 108)),
        Modality.PD: Sequence("spin_echo", tr=draw(4500, 9500), te=draw(8, 22)),
        Modality.FLAIR: Sequence("inversion", tr=flair_tr, te=draw(80, 115), ti=flair_ti),
        Modality.T1GD: after,
    }


def null_ti(tr: float, t1: float) -> float:
    """Inversion time at which tissue of ``t1`` gives no signal, ms."""
    return float(t1 * np.log(2 / (1 + np.exp(-tr / t1))))


def _draw_t1(generator: np.random.Generator, field_t: float, fluid_t1: float) -> Sequence:
    """At 1.5 T sometimes a spin echo (at 3 T its contrast is poor), else a gradient echo with or without inversion.

    The inversion time lies above the null of fluid, so that the magnitude keeps the order of the tissues.
    """
    draw = generator.uniform
    kind = generator.choice(3, p=(0.35, 0.3, 0.35) if field_t < 2 else (0.0, 0.42, 0.58))
    if kind == 0:
        return Sequence("spin_echo", tr=draw(400, 650), te=draw(8, 15))
    if kind == 1:
        return Sequence("gradient_echo", tr=draw(9, 25), te=draw(2, 6), flip_deg=draw(22, 32))
    tr = draw(1900, 2500)
    return Sequence("inversion", tr=tr, te=draw(2, 4), ti=null_ti(tr, fluid_t1) * draw(1.0, 1.18))


def signal(sequence: Sequence, tissue: Tissue, relax: tuple[Array, Array, Array] | None = None) -> Array:
    """Signal of pure ``tissue``, relative to fully relaxed water.

    Args:
        sequence: timings.
        tissue: mean values.
        relax: local factors on T1, T2 and PD, each ``(n,)``; None is 1.
    """
    f1, f2, fp = relax if relax is not None else (np.ones(1, np.float32),) * 3
    leak = sequence.relaxivity * tissue.gadolinium
    r1: Array = np.asarray(1 / (tissue.t1 * f1) + leak, np.float32)
    r2 = 1 / (tissue.t2 * f2) + R2_OVER_R1 * leak
    density = tissue.pd * fp * (0.25 if tissue.flows and sequence.kind == "spin_echo" and leak == 0 else 1.0)
    if tissue.flows and sequence.kind == "inversion" and sequence.te > 50:
        density = density * 0.25
    return np.asarray(density * _longitudinal(sequence, r1) * np.exp(-sequence.te * r2), np.float32)


def _longitudinal(sequence: Sequence, r1: Array) -> Array:
    saturation = np.exp(-sequence.tr * r1)
    if sequence.kind == "inversion":
        return np.asarray(np.abs(1 - 2 * np.exp(-sequence.ti * r1) + saturation), np.float32)
    if sequence.kind == "gradient_echo":
        angle = np.deg2rad(sequence.flip_deg)
        return np.asarray(np.sin(angle) * (1 - saturation) / (1 - np.cos(angle) * saturation), np.float32)
    return np.asarray(1 - saturation, np.float32)


def mixed_signal(
    sequence: Sequence,
    tissues: Mapping[str, Tissue],
    fractions: Mapping[str, Array],
    relax: Mapping[str, tuple[Array, Array, Array]],
) -> Array:
    """Partial volume: signals add up by fraction, ``(n,)``."""
    total: Array | float = 0.0
    for name, fraction in fractions.items():
        if tissues[name].pd > 0:
            total = total + fraction * signal(sequence, tissues[name], relax.get(name))
    return np.asarray(total, np.float32)


@dataclass(frozen=True)
class Scanner:
    """What the scanner adds to one contrast.

    Attributes:
        bias: half range of the smooth multiplicative field.
        snr: white-matter signal over the noise of one channel.
        blur_mm: standard deviation of the blur along ``blur_axis`` (slice thickness, interpolation).
        blur_axis: 0, 1 or 2.
        top: scanner value given to the 99.9th percentile.
    """

    bias: float
    snr: float
    blur_mm: float
    blur_axis: int
    top: int

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Scanner:
        """Random realistic values."""
        thick = generator.random() < 0.35
        return cls(
            bias=float(generator.uniform(0.03, 0.22)),
            snr=float(np.exp(generator.uniform(np.log(24), np.log(90)))),
            blur_mm=float(generator.uniform(0.6, 1.3) if thick else generator.uniform(0.0, 0.45)),
            blur_axis=int(generator.integers(3)),
            top=int(np.exp(generator.uniform(np.log(300), np.log(2000)))),
        )


def acquire(
    generator: np.random.Generator,
    scanner: Scanner,
    clean: Array,
    mask: NDArray[np.bool_],
    *,
    reference: float,
    spacing_mm: float,
) -> NDArray[np.int16]:
    """Blur, bias, Rician noise and scale: the volume as stored, exactly 0 outside ``mask``.

    Args:
        generator: chance.
        scanner: what to add.
        clean: noiseless signal of the voxels in ``mask``, ``(n,)``.
        mask: ``(i, j, k)``.
        reference: noiseless white-matter signal, to which the SNR refers.
        spacing_mm: voxel size.
    """
    shape: Shape = (mask.shape[0], mask.shape[1], mask.shape[2])
    blurred = _blurred(clean, mask, scanner.blur_mm / spacing_mm, scanner.blur_axis)
    bias = smooth_field(generator, shape, spacing_mm, 70.0, 2.0)[mask]
    bias *= np.float32(scanner.bias / max(float(np.abs(bias).max()), 1e-6))
    sigma = np.float32(reference / scanner.snr)
    real = blurred * (1 + bias) + sigma * generator.standard_normal(clean.size, dtype=np.float32)
    magnitude = np.hypot(real, sigma * generator.standard_normal(clean.size, dtype=np.float32))
    gain = scanner.top / max(float(np.percentile(magnitude[:: max(1, clean.size // 200_000)], 99.9)), 1e-6)
    volume = np.zeros(shape, np.int16)
    volume[mask] = np.clip(np.rint(magnitude * np.float32(gain)), 1, 32767).astype(np.int16)
    return volume


def _blurred(values: Array, mask: NDArray[np.bool_], sigma: float, axis: int) -> Array:
    """Blur inside the mask only: blurred signal over blurred mask."""
    if sigma < 0.15:
        return values
    volume = np.zeros(mask.shape, np.float32)
    volume[mask] = values
    top = scipy.ndimage.gaussian_filter1d(volume, sigma, axis=axis, truncate=3)
    weight = scipy.ndimage.gaussian_filter1d(mask.astype(np.float32), sigma, axis=axis, truncate=3)
    return np.asarray(top[mask] / weight[mask], np.float32)
