"""What is known of one DICOM object without its pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Parameters:
    """How an image was acquired, as far as it tells contrasts apart.

    Attributes:
        repetition: TR in ms; None where it is not said.
        echo: TE in ms.
        inversion: TI in ms.
        flip: angle in degrees.
        sequence: Scanning Sequence: SE, IR, GR, EP, RM.
        variant: Sequence Variant: SK, SP, MP, TOF and so on.
        kind: Image Type, upper case.
        acquired: Acquisition Contrast of enhanced objects.
        component: Complex Image Component.
        agent: whether a contrast agent is named.
        diffusion: whether a b-value above 0 is named.
        angiography: the Angio Flag.
        words: series description, protocol and sequence name: may hold anything, never leaves the terminal.
    """

    repetition: float | None = None
    echo: float | None = None
    inversion: float | None = None
    flip: float | None = None
    sequence: frozenset[str] = frozenset()
    variant: frozenset[str] = frozenset()
    kind: tuple[str, ...] = ()
    acquired: str = ""
    component: str = ""
    agent: bool = False
    diffusion: bool = False
    angiography: bool = False
    words: str = field(default="", repr=False)


@dataclass(frozen=True)
class Plane:
    """One slice: where it lies and how it was acquired.

    Attributes:
        file: name in the store.
        frame: number in a multi-frame object, from 1; None in a classic one.
        instance: UID of the object that it is in.
        position: of the first pixel's centre, mm, DICOM's LPS+; None where it is not said.
        orientation: direction cosines of a row and of a column, six numbers.
        spacing: between rows and between columns, mm.
        thickness: mm.
        parameters: of this slice.
    """

    file: str
    frame: int | None
    instance: str
    position: Vector | None
    orientation: Vector | None
    spacing: Vector | None
    thickness: float | None
    parameters: Parameters


@dataclass(frozen=True)
class Pixels:
    """Where the stored pixels of a file lie.

    Attributes:
        offset: of the first byte of the value.
        length: in bytes; None for compressed frames, whose end must be looked for.
        bits: allocated per sample.
        samples: per pixel.
    """

    offset: int
    length: int | None
    bits: int
    samples: int


@dataclass(frozen=True)
class Instance:
    """One DICOM object, without its pixels.

    Attributes:
        file: name in the store.
        size: of the file in bytes.
        syntax: transfer syntax UID.
        sop_class, uid, series, study, frame_of_reference: UIDs; they never become file names.
        number: Series Number; None where it is not said.
        order: Instance Number.
        modality: MR and so on.
        shape: rows, columns, frames; 0 where it is not an image.
        photometric: how stored values become grey.
        planes: the slices, without their order.
        pixels: None where there are none.
        synthetic: whether it says itself that it was computed.
        burned_in: whether it says that text is drawn into the pixels.
        patient_position: HFS and so on, or nothing.
        landmark: Position Reference Indicator.
        person: one-way code of the patient's name, number and birth date, to tell patients apart.
        identity: see :data:`IDENTITY`.
    """

    file: str
    size: int
    syntax: str
    sop_class: str
    uid: str
    series: str
    study: str
    frame_of_reference: str
    number: int | None
    order: int | None
    modality: str
    shape: tuple[int, int, int]
    photometric: str
    planes: tuple[Plane, ...] = field(repr=False)
    pixels: Pixels | None
    synthetic: bool
    burned_in: bool
    patient_position: str
    landmark: str
    person: str = field(repr=False)
    identity: Any = field(repr=False)
