"""The fixed sentences and words that keep synthetic and real scans apart."""

from __future__ import annotations

SYNTHETIC = "SYNTHETIC"
"""Burned into every picture of an imputed image; first word of NIfTI ``descrip`` and ``intent_name``."""

LOW_CONFIDENCE = "LOW CONFIDENCE"
"""Follows :data:`SYNTHETIC` in headers and pictures of a study whose doubt is over the limit of its model."""

PHANTOM = f"{SYNTHETIC} phantom"
"""First words of NIfTI ``descrip`` of a simulated scan: ground truth, and no image that a model made."""

RESEARCH_USE_ONLY = "Research use only; not a medical device"

ENHANCEMENT_UNKNOWN = (
    "Enhancement cannot be known from other contrasts: an imputed T1Gd shows where enhancement would be "
    "typical, not where it is. Do not use it to find, exclude or measure enhancing tissue."
)
"""Beside every imputed T1Gd, on screen and in every output."""

DOUBT_MEANING = (
    "Doubt of the predicted code: entropy of the predicted levels, 0 (certain) to 1 (every level equally "
    "likely), not calibrated, and the same for all contrasts imputed in one study."
)

NO_DOUBT_LIMIT = (
    "The model declares no limit of doubt for this number of contrasts, so nothing is called LOW CONFIDENCE."
)
"""In a report, where the absence of a verdict might be taken for a good one."""

LOW_DOUBT_IS_NO_PROOF = "A doubt under the limit does not show that an image is right."
"""In a report, beside every verdict."""


def synthetic_mark(*, low_confidence: bool) -> str:
    """The first words of a header, and what is burned into a picture."""
    return f"{SYNTHETIC} {LOW_CONFIDENCE}" if low_confidence else SYNTHETIC


def says_imputed(description: str, intent_name: str) -> bool:
    """Whether a NIfTI header's ``descrip`` and ``intent_name`` carry the mark of a computed image."""
    marked = description.startswith(SYNTHETIC) or intent_name.startswith(SYNTHETIC)
    return marked and not description.startswith(PHANTOM)
