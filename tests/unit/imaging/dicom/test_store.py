"""Folders and archives: what is read, and what an archive must not do."""

from __future__ import annotations

import stat
import struct
import zipfile

import pytest

import series
from codebrain.errors import CodeBrainError
from codebrain.imaging.dicom import store
from codebrain.imaging.dicom.find import find_examination, only_series
from codebrain.imaging.dicom.store import open_store


def archive(path, *members):
    """A zip of ``(name or ZipInfo, content)``."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members:
            made.writestr(name, content)
    return path


def special(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def zipped_series(path, folder):
    return archive(path, *((f"a b/{file.name}", file.read_bytes()) for file in sorted(folder.iterdir())))


def refused(path, reader=only_series):
    with pytest.raises(CodeBrainError) as caught:
        reader(path)
    return caught.value


@pytest.mark.parametrize(
    "member",
    ["../evil.dcm", "a/../../evil.dcm", "/etc/evil.dcm", "..\\evil.dcm", "C:\\evil.dcm", "C:evil.dcm", "\\\\host\\evil",
     special("link.dcm", stat.S_IFLNK | 0o777), special("pipe.dcm", stat.S_IFIFO | 0o644),
     special("device.dcm", stat.S_IFBLK | 0o644)],
    ids=lambda member: getattr(member, "filename", member),
)  # fmt: skip
def test_an_unsafe_member_condemns_the_archive(member, tmp_path):
    folder = series.write(tmp_path / "in", series.slices())
    path = zipped_series(tmp_path / "scans.zip", folder)
    with zipfile.ZipFile(path, "a") as made:
        made.writestr(member, b"/etc/passwd")
    before = sorted(tmp_path.rglob("*"))
    assert refused(path).code == "IN_UNSAFE"
    assert sorted(tmp_path.rglob("*")) == before


def test_an_archive_is_read_as_its_folder_is(tmp_path):
    folder = series.write(tmp_path / "in", series.slices())
    from codebrain.imaging.dicom.convert import read_series

    pytest.importorskip("dcm2niix")
    here, there = (read_series(only_series(p)) for p in (folder, zipped_series(tmp_path / "s.zip", folder)))
    assert here.sha256 == there.sha256
    assert (here.data == there.data).all() and (here.affine == there.affine).all()


def test_a_bomb_is_refused_by_its_table_of_contents(tmp_path):
    path = archive(tmp_path / "bomb.zip", ("a.dcm", bytes(128) + b"DICM" + bytes(80 << 20)))
    assert path.stat().st_size < 1 << 20
    error = refused(path)
    assert error.code == "IN_TOO_BIG" and "bomb" in str(error)


def test_a_member_that_lies_about_its_size_is_damaged(tmp_path):
    """The table of contents says 300 bytes, the stream holds 3 MB."""
    path = archive(tmp_path / "liar.zip", ("a.dcm", bytes(128) + b"DICM" + bytes(3 << 20)))
    content = path.read_bytes()
    true, small = struct.pack("<I", 132 + (3 << 20)), struct.pack("<I", 300)
    assert content.count(true) == 2
    path.write_bytes(content.replace(true, small))
    assert refused(path).code in ("IN_CHECKSUM", "DCM_MALFORMED")


@pytest.mark.parametrize("spoil", [lambda c: c[: len(c) // 2], lambda c: c[:4000] + bytes(500) + c[4500:]])
def test_a_damaged_archive(spoil, tmp_path):
    path = zipped_series(tmp_path / "s.zip", series.write(tmp_path / "in", series.slices()))
    path.write_bytes(spoil(path.read_bytes()))
    assert refused(path).code in ("IN_CHECKSUM", "DCM_MALFORMED")


def test_an_encrypted_archive(tmp_path):
    path = archive(tmp_path / "s.zip", ("a.dcm", b"x" * 500))
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)
    error = refused(path)
    assert error.code == "IN_FORMAT" and "encrypted" in str(error)


def test_too_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MAX_FILES", 3)
    folder = series.write(tmp_path / "in", series.slices())
    assert refused(folder).code == "IN_TOO_BIG"
    assert refused(zipped_series(tmp_path / "s.zip", folder)).code == "IN_TOO_BIG"


def test_what_is_no_store(tmp_path):
    (tmp_path / "t1.nii.gz").write_bytes(b"\x1f\x8b" + bytes(300))
    (tmp_path / "empty").write_bytes(b"")
    for name in ("t1.nii.gz", "empty", "absent", "x" * 5000):
        assert open_store(tmp_path / name) is None


def test_other_files_and_loops_are_passed_over(tmp_path):
    folder = series.write(tmp_path / "in", series.slices())
    (folder / "notes.txt").write_text("hello")
    (folder / "nowhere").symlink_to(tmp_path / "absent")
    (folder / "loop").symlink_to(folder)
    found = find_examination(folder)
    assert [len(s.planes) for s, _ in found.series] == [30]


@pytest.mark.row("G10")
def test_a_dicomdir_is_never_followed(tmp_path):
    """It points at a file above; the file is not opened."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    secret = series.save(series.slices()[0], tmp_path / "secret.dcm")
    ds, folder = Dataset(), tmp_path / "in"
    folder.mkdir()
    record = series.item(DirectoryRecordType="IMAGE")
    record.add(pydicom.DataElement(0x00041500, "CS", ["..", secret.name], validation_mode=0))
    ds.DirectoryRecordSequence = [record]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = series.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3"
    pydicom.dcmwrite(folder / "DICOMDIR", ds, enforce_file_format=True, implicit_vr=False, little_endian=True)
    assert b"secret.dcm" in (folder / "DICOMDIR").read_bytes()
    assert find_examination(folder) is None
    series.write(folder / "IMAGES", series.slices())
    assert len(find_examination(folder).series) == 1
