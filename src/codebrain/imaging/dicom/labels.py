"""Which contrast a series is, with the reason as a sentence.

Two witnesses are heard: the sequence parameters and the words of description, protocol and sequence name. Where
one is silent the other decides; where they contradict each other nobody does, and the user is asked. Series that
are no anatomical contrast of codebrain (diffusion, susceptibility, perfusion, phase, localisers, derived ones) are
passed over, with the reason, unless a user names them.

Source of the bounds: Bernstein, King and Zhou, Handbook of MRI Pulse Sequences (2004), and the protocols of
MAGNETOM, SIGNA and Ingenia scanners at 1.5 and 3 T. They leave the space between two contrasts undecided.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from codebrain.imaging.dicom.instance import Parameters
from codebrain.imaging.dicom.series import MR_IMAGES, Series, code_string, component
from codebrain.vocabulary import Modality

SYNTHETIC_REASON = "computed by a model, not measured"

LEAST_SLICES = 8
"""As many as a volume must have; stacks of fewer are localisers."""


@dataclass(frozen=True)
class Label:
    """What a series is.

    Attributes:
        contrast: None where it is passed over.
        reason: in words of MR physics; says nothing about a patient.
        maybe: the contrasts between which two witnesses that contradict each other leave it.
    """

    contrast: Modality | None
    reason: str
    maybe: tuple[Modality, ...] = ()


def _word(pattern: str) -> re.Pattern[str]:
    """``pattern`` as a word of its own; letters and digits bind, anything else separates."""
    return re.compile(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])")


@dataclass(frozen=True)
class _Other:
    """A kind of series that is no contrast of codebrain."""

    reason: str
    words: re.Pattern[str] | None = None
    signs: Callable[[Parameters], bool] = lambda told: False


_OTHERS = (
    _Other("a localiser", _word(r"loc|locali[sz]ers?|scouts?|survey|aahead\w*|3[- ]?plane"),
           lambda told: "LOCALIZER" in told.kind),
    _Other("diffusion", _word(r"dwi|dti|diff\w*|adc|trace\w*|b ?\d{3,4}|b0|eadc|hardi|noddi|dki|colfa"),
           lambda told: told.diffusion or bool({"DIFFUSION", "ADC", "TRACEW", "FA"} & {*told.kind, told.acquired})),
    _Other("perfusion", _word(r"perf\w*|dsc|dce|asl|[rt]?cb[fv]|mtt|ttp|tmax|pwi|twist"),
           lambda told: bool({"PERFUSION", "ASL"} & {*told.kind, told.acquired})),
    _Other("functional MRI", _word(r"bold|\w*fmri|rest|resting\w*"), lambda told: "FMRI" in told.kind),
    _Other("susceptibility", _word(r"swi\w*|swan|venobold|qsm|t2 ?star\w*|hemo\w*|min ?ip|r2"),
           lambda told: "SWI" in told.kind),
    _Other("angiography", _word(r"tof|mra|angio\w*|venogra\w*|mrv|pca"),
           lambda told: told.angiography or "TOF" in told.variant),
    _Other("a map, not a weighted image", _word(r"(?:t1|t2|r1|pd|b1|b0|field) ?map\w*|fieldmap\w*|uni|magic")),
    _Other("an inversion image of MP2RAGE", _word(r"inv ?[12]|mp2rage")),
    _Other("a subtraction", _word(r"subtract\w*"), lambda told: "SUBTRACTION" in told.kind or "SUBTRACT" in told.kind),
    _Other("double inversion recovery", _word(r"dir")),
    _Other("fat-nulled (STIR)", _word(r"stir")),
    _Other("spectroscopy", _word(r"mrs|spectro\w*|csi|svs")),
    _Other("a phase, real or imaginary image", None, lambda told: component(told) != "MAGNITUDE"),
    _Other("reformatted or projected", _word(r"mprs?|mips?|reformat\w*|collapsed?"),
           lambda told: bool({"MPR", "MIP", "MNIP", "REFORMATTED", "PROJECTION IMAGE"} & set(told.kind))),
    _Other("echo-planar", None, lambda told: "EP" in told.sequence),
    _Other("derived from other images", None, lambda told: told.kind[:2] == ("DERIVED", "SECONDARY")),
)  # fmt: skip
"""In this order; the first that fits gives the reason."""

_STAR = re.compile(r"t2\s*\*")

_NAMES = (
    (Modality.FLAIR, _word(r"flair\w*|dark ?fluid|t2f|darkfl")),
    (Modality.PD, _word(r"pd|pdw|proton ?density|dp")),
    (Modality.T2, _word(r"t2|t2w|t2 ?weighted|t2\w*(?:tse|fse|space|cube)|(?:tse|fse)\w*t2")),
    (Modality.T1, _word(r"t1|t1w|t1 ?weighted|t1n|t1c|t1ce|t1gd|t1\w*(?:mpr|se|tse|fse|vibe|space|fl2d|fl3d)"
                        r"|mp ?rage|bravo|fspgr|spgr|tfe|vibe|ir ?spgr")),
)  # fmt: skip
_AFTER = _word(r"gd|gad\w*|post\w*|ce|t1ce|t1c|t1gd|km|contrast|kontrast\w*|enh\w*|dotarem|gadovist|magnevist|prohance")
_PLUS = re.compile(r"\+ ?(?:c|gd|gad|km|contrast|gado)(?![a-z0-9])|(?<![a-z0-9])c ?\+")
_BEFORE = _word(r"pre|pre ?(?:contrast|gd|gad|km)|no[nt]? ?(?:contrast|c|gd|gad|km|enhanced)|without|w ?o|ohne"
                r"|nativ\w*|sans|unenhanced")  # fmt: skip


def label(series: Series) -> Label:
    """Say what a series is."""
    if series.first.modality != "MR":
        return Label(None, f"not MR ({code_string(series.first.modality)})")
    if series.first.synthetic:
        return Label(None, SYNTHETIC_REASON)
    if len(series.planes) < LEAST_SLICES:
        return Label(None, f"a localiser or a fragment, {_count(len(series.planes))}")
    if series.first.pixels is None or series.first.sop_class not in MR_IMAGES:
        return Label(None, "no MR image object (a screen capture, a report or the like)")
    return label_parameters(series.parameters)


def label_parameters(told: Parameters) -> Label:
    """Say what acquisition parameters and words mean."""
    words = re.sub(r"[_\-./,;:()\[\]*]+", " ", _STAR.sub("t2star", told.words.lower()))
    for other in _OTHERS:
        if other.signs(told) or (other.words is not None and other.words.search(words)):
            return Label(None, other.reason)
    measured, physics = _by_parameters(told)
    named = _by_words(words)
    if measured and named and measured is not named:
        return Label(None, f"parameters say {measured} ({physics}), words say {named}", (measured, named))
    base = measured or named
    if base is None:
        return Label(None, f"no contrast recognised ({physics})")
    source = physics if measured else f"by its words; {physics}"
    return _with_agent(base, source, told, words)


def _with_agent(base: Modality, source: str, told: Parameters, words: str) -> Label:
    """T1 with a contrast agent is T1Gd; others stay what they are."""
    after = bool(_AFTER.search(words) or _PLUS.search(words))
    before = bool(_BEFORE.search(words))
    if base is not Modality.T1 or not (told.agent or after):
        return Label(base, f"{source}{', after contrast agent' if told.agent else ''}")
    if before:
        if not told.agent:
            return Label(Modality.T1, f"{source}, words say before or without contrast agent")
        reason = f"{source}; a contrast agent is named, but words say before or without it"
        return Label(None, reason, (Modality.T1, Modality.T1GD))
    why = "ContrastBolusAgent present" if told.agent else "words say after contrast agent"
    return Label(Modality.T1GD, f"{why}, {source}")


def _by_words(words: str) -> Modality | None:
    """The one contrast that the words name; None for none or several (``PD/T2``)."""
    named = [modality for modality, pattern in _NAMES if pattern.search(words)]
    if Modality.FLAIR in named:  # "T2 FLAIR" is FLAIR, "T1 FLAIR" is T1
        return Modality.T1 if Modality.T1 in named else Modality.FLAIR
    return named[0] if len(named) == 1 else None


def _by_parameters(told: Parameters) -> tuple[Modality | None, str]:
    """The contrast that timing and sequence make, and both in words."""
    spin = bool({"SE", "RM", "IR"} & told.sequence) and "GR" not in told.sequence
    gradient = "GR" in told.sequence and "SE" not in told.sequence
    for modality, sequence, fits in _RULES:
        right = {"spin": spin, "gradient": gradient}[sequence]
        if right and told.echo is not None and told.repetition is not None and fits(_Timing.of(told)):
            return modality, _physics(told)
    return None, _physics(told)


@dataclass(frozen=True)
class _Timing:
    """TR, TE, TI (0 without inversion) in ms and the flip angle in degrees (90 where it is not said)."""

    tr: float
    te: float
    ti: float
    flip: float

    @classmethod
    def of(cls, told: Parameters) -> _Timing:
        return cls(told.repetition or 0, told.echo or 0, told.inversion or 0, told.flip if told.flip else 90)


_RULES: tuple[tuple[Modality, str, Callable[[_Timing], bool]], ...] = (
    # Free water is nulled near TI = 0.69 T1 (less where TR is short), and tissue is seen late.
    (Modality.FLAIR, "spin", lambda t: t.ti >= 1500 and t.tr >= 4000 and t.te >= 60),
    # T1 FLAIR: the same preparation, early echo.
    (Modality.T1, "spin", lambda t: 350 <= t.ti <= 1300 and t.tr <= 3500 and t.te <= 40),
    (Modality.T1, "spin", lambda t: t.ti == 0 and t.tr <= 1000 and t.te <= 35),
    (Modality.T2, "spin", lambda t: t.ti == 0 and t.tr >= 2000 and t.te >= 65),
    (Modality.PD, "spin", lambda t: t.ti == 0 and t.tr >= 1800 and t.te <= 40),
    # Magnetisation-prepared (MPRAGE, BRAVO, TFE) and spoiled (SPGR, FLASH, VIBE) gradient echoes.
    (Modality.T1, "gradient", lambda t: 300 <= t.ti <= 1400 and t.te <= 12),
    (Modality.T1, "gradient", lambda t: t.ti == 0 and t.tr <= 50 and t.te <= 8 and t.flip >= 8),
    (Modality.T1, "gradient", lambda t: t.ti == 0 and 50 < t.tr <= 600 and t.te <= 12 and t.flip >= 50),
)
"""Contrast by sequence and timing; the first that fits. No two of one sequence overlap."""


def _physics(told: Parameters) -> str:
    """``gradient echo, inversion, TR 2300 ms, TE 2.98 ms, TI 900 ms``."""
    parts = []
    if "GR" in told.sequence:
        parts.append("gradient echo")
    elif {"SE", "RM"} & told.sequence:
        parts.append("spin echo")
    for name, value in (("TR", told.repetition), ("TE", told.echo), ("TI", told.inversion)):
        if value:
            parts.append(f"{name} {value:g} ms")
    if told.flip and "GR" in told.sequence:
        parts.append(f"flip {told.flip:g}°")
    return ", ".join(parts) or "no timing in the headers"


def _count(slices: int) -> str:
    return f"{slices} slice" + ("" if slices == 1 else "s")
