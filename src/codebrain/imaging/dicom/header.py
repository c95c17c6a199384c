"""The one reader of DICOM headers: the elements that codebrain needs, of one file, or a refusal.

pydicom parses; this module keeps it in bounds. Deflated files are never handed to it (306 kB became 644 MB of
memory), lengths are clamped to the file, ``force`` is never used, pixels are never decoded, and whatever it
raises on a malformed file (six kinds of exceptions in 3,000 mutants) becomes ``DCM_MALFORMED``, without the
value, which may be a name.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codebrain.errors import CodeBrainError, missing_extra, refusal
from codebrain.imaging.dicom.instance import Instance, Pixels
from codebrain.imaging.dicom.store import Store, Stream
from codebrain.imaging.dicom.values import EXPORT_AGAIN, IDENTITY, ValueReader, malformed

MAX_INFLATED = 256 << 20
"""Bytes that a deflated file may come to before it counts as a bomb."""

DIRECTORY = "1.2.840.10008.1.3.10"
"""A DICOMDIR: an index of other files. It is passed over and never followed."""

CLASSIC_MR, ENHANCED_MR, LEGACY_MR = (f"1.2.840.10008.5.1.4.1.1.4{tail}" for tail in ("", ".1", ".4"))
IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN = (f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".1.99", ".2"))

_TAGS = (
    *IDENTITY, "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID",
    "FrameOfReferenceUID", "PositionReferenceIndicator", "Modality", "SeriesNumber", "InstanceNumber",
    "PatientPosition", "ImageType", "SyntheticData", "BurnedInAnnotation", "SeriesDescription", "ProtocolName",
    "SequenceName", "RepetitionTime", "EchoTime", "EffectiveEchoTime", "InversionTime", "FlipAngle", "ScanningSequence",
    "SequenceVariant", "MRAcquisitionType", "ContrastBolusAgent", "ContrastBolusAgentSequence", "DiffusionBValue",
    "AngioFlag", "AcquisitionContrast", "ComplexImageComponent", "EchoPulseSequence", "InversionRecovery",
    "EchoPlanarPulseSequence", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip

_UNDEFINED = 0xFFFFFFFF
_LONG_VR = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN", b"SQ", b"UT", b"UC", b"UR")
_ITEM, _DELIMITER = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_LOOKS_DICOM = tuple(bytes((group, 0, element, 0)) for group in (2, 8) for element in (0, 1, 5, 8))
_SUFFIXES = (".dcm", ".dicom", ".ima")


def read_instance(store: Store, name: str, size: int) -> Instance | None:
    """One file's header; None for a file that is no DICOM image or report.

    Raises:
        InputRefused: ``DCM_MALFORMED``, ``DCM_CODEC``, ``IN_TOO_BIG``.
        EnvironmentRefused: ``ENV_EXTRA`` without pydicom.
    """
    file = store.place(name)
    with store.stream(name) as stream:
        if not _has_mark(stream, name, file):
            return None
        syntax = _transfer_syntax(stream, file)
        if syntax == DEFLATED:
            raise _deflated(stream, file)
        with quiet():
            ds = _parse(stream, file)
            reader = ValueReader(file)
            if reader.text(ds.file_meta, "MediaStorageSOPClassUID") == DIRECTORY:
                return None
            return reader.instance(ds, name, size, syntax, _pixels(stream, syntax, ds, reader))


def _has_mark(stream: Stream, name: str, file: Path) -> bool:
    """Whether the file begins as DICOM files do.

    Raises:
        InputRefused: ``DCM_MALFORMED`` when it lacks the mark but is named or begins like one.
    """
    head = stream.read(132)
    if head[128:] == b"DICM":
        return True
    if name.lower().endswith(_SUFFIXES) or head[:4] in _LOOKS_DICOM:
        raise malformed(file, "the file has no preamble with the mark DICM", "Export the series again as DICOM files.")
    return False


def _transfer_syntax(stream: Stream, file: Path) -> str:
    """The UID in the file's meta information, which is always explicit and little-endian."""
    while len(tag := stream.read(4)) == 4 and tag[:2] == b"\x02\0":
        vr = stream.read(2)
        raw = stream.read(6)[2:] if vr in _LONG_VR else stream.read(2)
        length = int.from_bytes(raw, "little")
        if tag == b"\x02\0\x10\0":
            stream_value = stream.read(min(length, 64))
            return stream_value.rstrip(b"\0 ").decode("ascii", "replace")
        stream.seek(length, 1)
    raise malformed(file, "the file does not name its transfer syntax", keyword="TransferSyntaxUID")


def _deflated(stream: Stream, file: Path) -> CodeBrainError:
    """Why a deflated file is refused: as a bomb, or because dcm2niix reads none."""
    stream.seek(132)
    group_length = stream.read(12)
    start = 144 + int.from_bytes(group_length[8:12], "little") if group_length[:4] == b"\x02\0\0\0" else 132
    stream.seek(start)
    inflater, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    try:
        for chunk in stream.chunks(stream.size - start):
            pending = chunk
            while pending and not inflater.eof:
                total += len(inflater.decompress(pending, 1 << 20))
                pending = inflater.unconsumed_tail
                if total > MAX_INFLATED:
                    return refusal("IN_TOO_BIG", "the deflated file goes on beyond what a scan holds", file=file,
                                   expected=f"at most {MAX_INFLATED} bytes",
                                   hint="It may be a decompression bomb.")  # fmt: skip
    except zlib.error:
        return malformed(file, "the deflated stream is damaged")
    return refusal("DCM_CODEC", "dcm2niix does not read deflated files", file=file, field="TransferSyntaxUID",
                   found=DEFLATED, hint="Inflate it first, for example with: dcmconv +te IN OUT.")  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom without its warnings, which quote values, and without its judgement of them, which is ours.

    Raises:
        EnvironmentRefused: ``ENV_EXTRA`` without pydicom.
    """
    try:
        from pydicom import config
    except ImportError as error:
        raise missing_extra("pydicom", "dicom", "reading DICOM") from error
    with config.disable_value_validation(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _parse(stream: Stream, file: Path) -> Any:
    import pydicom

    stream.seek(0)
    try:
        return pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS))
    except RecursionError as error:
        raise malformed(file, "sequences are nested too deep") from error
    except CodeBrainError:
        raise
    except Exception as error:  # pydicom's own, and six of Python's
        raise malformed(file, f"the header cannot be read ({type(error).__name__})") from error


def _pixels(stream: Stream, syntax: str, ds: Any, reader: ValueReader) -> Pixels | None:
    """Where the pixel data are; pydicom has stopped just before them."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    tag = stream.read(4)
    if tag != struct.pack(f"{order}HH", 0x7FE0, 0x0010):
        return None
    raw = stream.read(4)
    if syntax != IMPLICIT:
        raw = stream.read(4)
    if len(raw) < 4:
        raise refusal("IN_TRUNCATED", "the file ends where its pixels begin", file=reader.file, hint=EXPORT_AGAIN)
    length = int(struct.unpack(f"{order}I", raw)[0])
    bits, samples = reader.whole(ds, "BitsAllocated"), reader.whole(ds, "SamplesPerPixel")
    return Pixels(stream.tell(), None if length == _UNDEFINED else length, bits or 0, samples or 1)


def frames_end(stream: Stream, offset: int) -> bool:
    """Whether the compressed frames from ``offset`` on end with their delimiter inside the file."""
    stream.seek(offset)
    while len(head := stream.read(8)) == 8:
        tag, length = head[:4], int.from_bytes(head[4:], "little")
        if tag == _DELIMITER:
            return True
        if tag != _ITEM or length > stream.size - stream.tell():
            return False
        stream.seek(length, 1)
    return False
