"""Headers of strangers: whatever is in them, a sentence and not a traceback, and never the value itself."""

from __future__ import annotations

import struct
import warnings
import zlib

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import series
from codebrain.errors import CodeBrainError
from codebrain.imaging.dicom import header
from codebrain.imaging.dicom.find import only_series
from codebrain.imaging.dicom.series import judge_series


def one(tmp_path, change=None, **saving):
    """The bytes of one slice, its path."""
    ds = series.slices()[0]
    if change is not None:
        change(ds)
    path = series.save(ds, tmp_path / "a.dcm", **saving)
    return path, path.read_bytes()


def refused(path):
    with pytest.raises(CodeBrainError) as caught:
        judge_series(only_series(path), max_voxels=2**28)
    return caught.value


def spoiled(tmp_path, content):
    path = tmp_path / "spoiled.dcm"
    path.write_bytes(content)
    return path


def element(keyword, vr, value):
    tag = pydicom.datadict.tag_for_keyword(keyword)
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr + struct.pack("<H", len(value)) + value


def with_value(content, keyword, vr, old, new):
    before = element(keyword, vr, old)
    assert content.count(before) == 1
    return content.replace(before, element(keyword, vr, new))


@pytest.mark.row("G9")
def test_g9_a_number_that_is_none(tmp_path):
    _, content = one(tmp_path)
    bad = with_value(content, "PixelSpacing", b"DS", b"5\\5 ", b"6.\x80406\\6 ")
    error = refused(spoiled(tmp_path, bad))
    assert (error.code, error.field) == ("DCM_MALFORMED", "PixelSpacing")
    assert "406" not in str(error)


@pytest.mark.row("G9")
@pytest.mark.parametrize(
    ("keyword", "vr", "old", "new"),
    [
        ("PixelSpacing", b"DS", b"5\\5 ", b"NaN\\5 "),
        ("PixelSpacing", b"DS", b"5\\5 ", b"1e999\\5 "),
        ("PixelSpacing", b"DS", b"5\\5 ", b"5\\5\\5 "),
        ("ImageOrientationPatient", b"DS", b"1\\0\\0\\0\\1\\0 ", b"1\\0\\0 "),
        ("SeriesNumber", b"IS", b"1 ", b"Doe^Jo"),
        ("SeriesNumber", b"IS", b"1 ", b"1.5 "),
        ("Rows", b"US", b"\x24\0", b"\x24"),
        ("Rows", b"US", b"\x24\0", b"\x24\0\1"),
        ("EchoTime", b"DS", b"2.98", b"-"),
    ],
)
def test_g9_values_that_cannot_be(keyword, vr, old, new, tmp_path):
    _, content = one(tmp_path)
    error = refused(spoiled(tmp_path, with_value(content, keyword, vr, old, new)))
    assert error.code == "DCM_MALFORMED"
    assert "Doe" not in str(error)


@pytest.mark.row("G9")
def test_g9_a_value_representation_that_does_not_exist(tmp_path):
    _, content = one(tmp_path)
    place = content.index(element("PixelSpacing", b"DS", b"5\\5 "))
    assert refused(spoiled(tmp_path, content[: place + 4] + b"Z!" + content[place + 6 :])).code in (
        "DCM_MALFORMED", "IN_TRUNCATED",
    )  # fmt: skip


def nested(depth):
    """A sequence in a sequence in a sequence, of undefined lengths."""
    opened = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return opened * depth + closed * depth


@pytest.mark.row("G8")
def test_g8_sequences_nested_a_thousand_deep(tmp_path):
    _, content = one(tmp_path)
    place = content.index(struct.pack("<HH", 0x0010, 0x0010))
    error = refused(spoiled(tmp_path, content[:place] + nested(1000) + content[place:]))
    assert error.code == "DCM_MALFORMED"
    with pytest.raises(CodeBrainError, match="single slice"):  # one within another is nothing unusual
        judge_series(only_series(spoiled(tmp_path, content[:place] + nested(3) + content[place:])), max_voxels=2**28)


@pytest.mark.row("G10")
def test_g10_no_mark(tmp_path):
    _, content = one(tmp_path)
    folder = tmp_path / "bare"
    folder.mkdir()
    for name, bare in (("a.dcm", content[132:]), ("a.IMA", b"nothing"), ("IM0001", content[132:])):
        (folder / name).write_bytes(bare)
        assert refused(folder).code == "DCM_MALFORMED", name
        (folder / name).unlink()


@pytest.mark.row("G10")
def test_g10_no_transfer_syntax(tmp_path):
    _, content = one(tmp_path)
    tag = content.index(b"\x02\0\x10\0UI")
    length = struct.unpack("<H", content[tag + 6 : tag + 8])[0]
    error = refused(spoiled(tmp_path, content[:tag] + content[tag + 8 + length :]))
    assert (error.code, error.field) == ("DCM_MALFORMED", "TransferSyntaxUID")


def deflated(tmp_path, extra):
    """A deflated file that goes on for ``extra`` zeros after its pixels."""
    _, content = one(tmp_path)
    head = content[: content.index(b"\x02\0\x10\0UI")]
    syntax = b"1.2.840.10008.1.2.1.99"
    meta = head[144:] + b"\x02\0\x10\0UI" + struct.pack("<H", len(syntax)) + syntax
    rest = content[content.index(b"\x08\0\x05\0") if b"\x08\0\x05\0" in content else content.index(b"\x08\0\x08\0") :]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = (
        packer.compress(rest) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(extra >> 20)) + packer.flush()
    )
    return spoiled(tmp_path, head[:140] + struct.pack("<I", len(meta)) + meta + packed)


@pytest.mark.row("G7")
def test_g7_a_deflated_bomb(tmp_path, monkeypatch):
    import tracemalloc

    path = deflated(tmp_path, 40 << 20)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(header, "MAX_INFLATED", 32 << 20)
    tracemalloc.start()
    error = refused(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.code == "IN_TOO_BIG"
    assert peak < 16 << 20


def test_a_deflated_file_is_told_how_to_be_inflated(tmp_path):
    error = refused(deflated(tmp_path, 0))
    assert error.code == "DCM_CODEC" and "dcmconv" in str(error)
    assert pydicom.dcmread(tmp_path / "spoiled.dcm").SeriesNumber == 1  # it is a whole one


@pytest.mark.row("G6")
@pytest.mark.parametrize("cut", [1, 100, 1500])
def test_g6_short_pixels(cut, tmp_path):
    _, content = one(tmp_path)
    error = refused(spoiled(tmp_path, content[:-cut]))
    assert error.code == "IN_TRUNCATED" and "2304 bytes" in str(error)


@pytest.mark.row("G6", "G12", "G14")
@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"Rows": 65535, "Columns": 65535}, "IN_TOO_BIG"),
        ({"NumberOfFrames": 10**9}, "IN_TOO_BIG"),
        ({"NumberOfFrames": 30}, "DCM_UNSUPPORTED"),
        ({"Rows": 0}, "DCM_GEOMETRY"),
        ({"BitsAllocated": 0}, "IN_TRUNCATED"),
        ({"SamplesPerPixel": 3}, "DCM_UNSUPPORTED"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "DCM_UNSUPPORTED"),
        ({"Modality": "CT"}, "DCM_MODALITY"), ({"Modality": "PT"}, "DCM_MODALITY"),
        ({"Modality": "SEG"}, "DCM_MODALITY"), ({"Modality": "SR"}, "DCM_MODALITY"),
        ({"Modality": None}, "DCM_MODALITY"),
        ({"SyntheticData": "YES"}, "IN_SYNTHETIC"), ({"SeriesDescription": "SYNTHETIC T2, imputed"}, "IN_SYNTHETIC"),
    ],
)  # fmt: skip
def test_g6_g12_g14_what_a_header_says(tags, code, tmp_path):
    path = series.write(tmp_path, series.slices(**tags))
    assert refused(path).code == code


@pytest.mark.parametrize("keyword", ["Modality", "SOPClassUID"])
def test_a_name_where_a_code_belongs_is_not_repeated(keyword, tmp_path):
    _, content = one(tmp_path)
    vr, old = (b"CS", b"MR") if keyword == "Modality" else (b"UI", b"1.2.840.10008.5.1.4.1.1.4\0")
    error = refused(spoiled(tmp_path, with_value(content, keyword, vr, old, b"Doe^Jo")))
    assert error.code in ("DCM_MODALITY", "DCM_UNSUPPORTED") and "doe" not in str(error).lower()


def test_the_cap_on_voxels_is_the_user_s(tmp_path):
    found = only_series(series.write(tmp_path, series.slices()))
    with pytest.raises(CodeBrainError) as caught:
        judge_series(found, max_voxels=1000)
    assert caught.value.code == "IN_TOO_BIG"
    judge_series(found, max_voxels=32 * 36 * 30)


@pytest.mark.row("G5", "G6")
def test_compressed_pixels_that_are_cut(tmp_path):
    def compress(ds):
        ds.PixelData = pydicom.encaps.encapsulate([b"\0" * 500])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True

    for syntax, code in (("1.2.840.10008.1.2.4.90", "IN_TRUNCATED"), ("1.2.840.10008.1.2.4.201", "DCM_CODEC")):
        _, content = one(tmp_path, compress, syntax=syntax)
        assert refused(spoiled(tmp_path, content[:-300])).code == code


def test_frames_that_are_not_all_described(tmp_path):
    whole = series.enhanced(series.slices())
    whole.NumberOfFrames = 29
    assert refused(series.write(tmp_path, whole)).code == "DCM_MALFORMED"


@pytest.mark.row("G9")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4), cut=st.floats(0, 1))
def test_g9_no_mutant_gives_a_traceback(places, cut, tmp_path):
    """Bytes of a header changed at random places, and half of the time the file cut."""
    content = bytearray(one(tmp_path)[1])
    for place, value in places:
        content[132 + int(place * (len(content) - 2304 - 133))] = value
    path = spoiled(tmp_path, bytes(content[: int(cut * 2 * len(content))] if cut < 0.5 else content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = only_series(path)
            if found is not None:
                judge_series(found, max_voxels=2**28)
        except CodeBrainError as error:
            assert error.code.startswith(("DCM_", "IN_"))
            assert "Doe" not in str(error)


def test_reading_leaves_pydicom_as_it_was(tmp_path):
    from pydicom import config

    before = config.settings.reading_validation_mode
    refused(one(tmp_path)[0])
    assert config.settings.reading_validation_mode == before


def test_a_forged_length_costs_no_memory(tmp_path):
    import tracemalloc

    _, content = one(tmp_path)
    place = content.index(struct.pack("<HH", 0x0010, 0x0010))
    forged = struct.pack("<HH2sHI", 0x0009, 0x1001, b"UN", 0, 0xFFFFFFF0)
    tracemalloc.start()
    error = refused(spoiled(tmp_path, content[:place] + forged + content[place:]))
    assert error.code in ("DCM_MALFORMED", "DCM_MODALITY", "IN_TRUNCATED")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
