"""Values of a DICOM header, read with distrust: what cannot be read is a refusal that names the element only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from codebrain.errors import CodeBrainError, refusal
from codebrain.imaging.dicom.instance import Instance, Parameters, Pixels, Plane, Vector
from codebrain.marks import SYNTHETIC

IDENTITY = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "AccessionNumber", "StudyID", "StudyDescription", "ReferringPhysicianName",
)  # fmt: skip
"""Whom and which examination a series belongs to: copied to a derived series with ``--keep-patient`` only."""

EXPORT_AGAIN = "The file is damaged; export the series again."


def malformed(file: Path, sentence: str, hint: str = EXPORT_AGAIN, keyword: str | None = None) -> CodeBrainError:
    """The refusal of a value or a file that cannot be read; it never quotes the value."""
    return refusal("DCM_MALFORMED", sentence, file=file, field=keyword, hint=hint)


class ValueReader:
    """Values of one file; what cannot be read is ``DCM_MALFORMED`` and names the element, never its value."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def instance(self, ds: Any, name: str, size: int, syntax: str, pixels: Pixels | None) -> Instance:
        shape = (self.whole(ds, "Rows") or 0, self.whole(ds, "Columns") or 0, self.whole(ds, "NumberOfFrames") or 1)
        uid = self.text(ds, "SOPInstanceUID")
        described = self.text(ds, "SeriesDescription")
        return Instance(
            file=name,
            size=size,
            syntax=syntax,
            sop_class=self.text(ds, "SOPClassUID"),
            uid=uid,
            series=self.text(ds, "SeriesInstanceUID"),
            study=self.text(ds, "StudyInstanceUID"),
            frame_of_reference=self.text(ds, "FrameOfReferenceUID"),
            number=self.whole(ds, "SeriesNumber"),
            order=self.whole(ds, "InstanceNumber"),
            modality=self.text(ds, "Modality").upper(),
            shape=shape,
            photometric=self.text(ds, "PhotometricInterpretation").upper(),
            planes=self.planes(ds, name, uid),
            pixels=pixels,
            synthetic=self.text(ds, "SyntheticData").upper() == "YES" or described.upper().startswith(SYNTHETIC),
            burned_in=self.text(ds, "BurnedInAnnotation").upper() == "YES",
            patient_position=self.text(ds, "PatientPosition"),
            landmark=self.text(ds, "PositionReferenceIndicator"),
            person=self.person(ds),
            identity=self.identity(ds),
        )

    def planes(self, ds: Any, name: str, uid: str) -> tuple[Plane, ...]:
        frames = self.items(ds, "PerFrameFunctionalGroupsSequence")
        if not frames:
            return (self.plane([ds], name, None, uid),)
        shared = self.items(ds, "SharedFunctionalGroupsSequence")[:1]
        groups = [inner for outer in shared for inner in self.groups(outer)]
        return tuple(
            self.plane([*self.groups(frame), *groups, ds], name, number, uid)
            for number, frame in enumerate(frames, start=1)
        )

    def groups(self, item: Any) -> list[Any]:
        """The macros of a functional group, each a data set."""
        try:
            return [element.value[0] for element in item if element.VR == "SQ" and len(element.value)]
        except Exception as error:
            raise malformed(self.file, "a functional group cannot be read") from error

    def plane(self, places: Sequence[Any], name: str, frame: int | None, uid: str) -> Plane:
        return Plane(
            file=name,
            frame=frame,
            instance=uid,
            position=self.numbers(places, "ImagePositionPatient", 3),
            orientation=self.numbers(places, "ImageOrientationPatient", 6),
            spacing=self.numbers(places, "PixelSpacing", 2),
            thickness=self.first(places, "SliceThickness"),
            parameters=self.parameters(places),
        )

    def parameters(self, places: Sequence[Any]) -> Parameters:
        words = [self.text(places[-1], k) for k in ("SeriesDescription", "ProtocolName", "SequenceName")]
        diffusion = self.first(places, "DiffusionBValue")
        return Parameters(
            repetition=self.first(places, "RepetitionTime"),
            echo=self.first(places, "EffectiveEchoTime") or self.first(places, "EchoTime"),
            inversion=self.first(places, "InversionTimes") or self.first(places, "InversionTime"),
            flip=self.first(places, "FlipAngle"),
            sequence=frozenset((*self.many(places, "ScanningSequence"), *self.enhanced_sequence(places))),
            variant=frozenset(self.many(places, "SequenceVariant")),
            kind=self.many(places, "FrameType") or self.many(places, "ImageType"),
            acquired="\\".join(self.many(places, "AcquisitionContrast")),
            component="\\".join(self.many(places, "ComplexImageComponent")),
            agent=self.agent(places[-1]),
            diffusion=bool(diffusion and diffusion > 0),
            angiography=self.many(places, "AngioFlag") == ("Y",),
            words=" ".join(filter(None, words)),
        )

    def enhanced_sequence(self, places: Sequence[Any]) -> Iterator[str]:
        """What classic objects call Scanning Sequence, from the words of enhanced ones."""
        pulse = self.many(places, "EchoPulseSequence")
        yield from (code for word, code in (("SPIN", "SE"), ("GRADIENT", "GR"), ("BOTH", "RM")) if word in pulse)
        if "YES" in self.many(places, "InversionRecovery"):
            yield "IR"
        if "YES" in self.many(places, "EchoPlanarPulseSequence"):
            yield "EP"

    def agent(self, ds: Any) -> bool:
        named = self.text(ds, "ContrastBolusAgent").strip().lower()
        return named not in ("", "no", "none", "n/a", "na", "without", "0") or bool(
            self.items(ds, "ContrastBolusAgentSequence")
        )

    def person(self, ds: Any) -> str:
        told = [self.text(ds, keyword) for keyword in ("PatientName", "PatientID", "PatientBirthDate")]
        return hashlib.sha256("\0".join(told).encode()).hexdigest() if any(told) else ""

    def identity(self, ds: Any) -> Any:
        """The elements of :data:`IDENTITY` as they are, with their character set."""
        from pydicom.dataset import Dataset

        kept = Dataset()
        try:
            for keyword in ("SpecificCharacterSet", *IDENTITY):
                if keyword in ds:
                    kept.add(ds[keyword])
        except Exception as error:
            raise malformed(self.file, "the patient's data cannot be read") from error
        return kept

    def value(self, ds: Any, keyword: str) -> Any:
        try:
            return ds.get(keyword)
        except Exception as error:
            raise malformed(self.file, "the value cannot be read", keyword=keyword) from error

    def text(self, ds: Any, keyword: str) -> str:
        """A value as text; several are joined."""
        value = self.value(ds, keyword)
        if value is None:
            return ""
        return (
            "\\".join(map(str, value))
            if isinstance(value, list) or type(value).__name__ == "MultiValue"
            else str(value)
        )

    def items(self, ds: Any, keyword: str) -> list[Any]:
        value = self.value(ds, keyword)
        try:
            return [] if value is None else list(value)
        except Exception as error:
            raise malformed(self.file, "the sequence cannot be read", keyword=keyword) from error

    def many(self, places: Sequence[Any], keyword: str) -> tuple[str, ...]:
        """The first place's value, in upper-case words."""
        for place in places:
            if text := self.text(place, keyword):
                return tuple(word.strip().upper() for word in text.split("\\"))
        return ()

    def numbers(self, places: Sequence[Any], keyword: str, count: int | None) -> Vector | None:
        """The first place's value as ``count`` finite numbers; None where it is nowhere.

        Raises:
            InputRefused: ``DCM_MALFORMED``.
        """
        for place in places:
            value = self.value(place, keyword)
            if value is None or value in ("", []):
                continue
            try:
                parts = tuple(map(float, [value] if isinstance(value, str | bytes | float | int) else value))
            except Exception as error:
                raise malformed(self.file, "the value is not a number", keyword=keyword) from error
            finite = all(abs(part) < 1e12 for part in parts)  # false for NaN, too
            if not finite or (count is not None and len(parts) != count):
                raise malformed(self.file, f"the value is not {count or 'some'} finite numbers", keyword=keyword)
            return parts
        return None

    def first(self, places: Sequence[Any], keyword: str) -> float | None:
        found = self.numbers(places, keyword, None)
        return found[0] if found else None

    def whole(self, ds: Any, keyword: str) -> int | None:
        """A whole number."""
        found = self.first([ds], keyword)
        if found is not None and (found != int(found) or found < -(2**31)):
            raise malformed(self.file, "the value is not a whole number", keyword=keyword)
        return None if found is None else int(found)
