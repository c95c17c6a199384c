from __future__ import annotations

import errno
import json
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codebrain.data.slices import FULL_SCALE, SliceStore, SubjectRecord
from codebrain.errors import InputRefused, UsageError
from codebrain.imaging.safe_files import sha256_bytes
from fabricated import fabricate_store


@pytest.fixture
def store(tmp_path: Path) -> SliceStore:
    return fabricate_store(tmp_path, test=["s00"], val=["s01"])


def _first(store: SliceStore, count: int = 3) -> np.ndarray:
    return store.index("train")[:count]


def test_stack_is_what_was_stored(store: SliceStore) -> None:
    stack = store.stack("s02")
    assert stack.shape == (5, 3, 24, 16)
    assert stack.dtype == np.float32
    np.testing.assert_array_equal(np.rint(stack * 65535).astype(np.uint16), store.slices("s02"))
    assert 0 <= stack.min() < stack.max() <= 1


def test_mask_is_the_foreground(store: SliceStore) -> None:
    mask = store.brain("s02")
    assert mask.shape == (5, 24, 16)
    assert tuple(mask.sum(axis=(1, 2))) == store.record("s02").foreground_pixels
    assert not store.stack("s02")[:, 0][~mask].any()


def test_index_leaves_empty_slices_out(store: SliceStore) -> None:
    picks = store.index("train")
    assert {store.names[s] for s, _ in picks} == {"s02", "s03"}
    assert sorted(z for _, z in picks) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert len(store.index("train", least_foreground=0.0)) == 10


def test_index_refuses_when_nothing_is_left(store: SliceStore) -> None:
    with pytest.raises(InputRefused, match="enough foreground"):
        store.index("train", least_foreground=0.99)


def test_whole_slices_come_back(store: SliceStore) -> None:
    images, available, ids = store.batch(_first(store), crop=None, generator=np.random.default_rng(0))
    assert images.shape == (3, 3, 24, 16)
    assert images.dtype == np.float32
    assert available.all()
    assert ids == ("s02/1", "s02/2", "s02/3")
    np.testing.assert_array_equal(images[0], store.stack("s02")[1])


@pytest.mark.parametrize("crop", [None, 8, 32])
def test_a_batch_as_stored_is_the_batch(store: SliceStore, crop: int | None) -> None:
    picks = store.index("train")
    images, available, ids = store.batch(picks, crop=crop, generator=np.random.default_rng(0))
    stored, there, names = store.stored_batch(picks, crop=crop, generator=np.random.default_rng(0))
    assert stored.dtype == np.uint16 and stored.any() and names == ids
    np.testing.assert_array_equal(stored.astype(np.float32) / np.float32(FULL_SCALE), images)
    np.testing.assert_array_equal(there, available)


def test_whole_slices_of_different_sizes_share_a_frame(tmp_path: Path) -> None:
    big = fabricate_store(tmp_path / "big", 2, shape=(5, 40, 8))
    store = fabricate_store(tmp_path, 2)
    for tail in (".npy", "-brain.npy"):
        (tmp_path / "slices" / f"s01{tail}").write_bytes((tmp_path / "big/slices" / f"s01{tail}").read_bytes())
    records = (store.record("s00"), big.record("s01"))
    mixed = SliceStore(tmp_path, replace(store.manifest, records=records))
    images, _, _ = mixed.batch(np.array([[0, 2], [1, 2]]), crop=None, generator=np.random.default_rng(0))
    assert images.shape == (2, 3, 40, 16)
    np.testing.assert_array_equal(images[0, :, 8:32], store.stack("s00")[2])
    np.testing.assert_array_equal(images[1, :, :, 4:12], big.stack("s01")[2])
    assert not images[0, :, :8].any()


def test_crops_hold_foreground_and_reach_all_of_it(store: SliceStore) -> None:
    picks = np.repeat(_first(store, 1), 400, axis=0)
    images, _, _ = store.batch(picks, crop=8, generator=np.random.default_rng(0))
    assert images.shape == (400, 3, 8, 8)
    assert images.reshape(400, -1).any(axis=1).all()
    whole = store.stack("s02")[1, 0]
    assert set(np.unique(images[:, 0])) - {0} == set(np.unique(whole)) - {0}


def test_crops_larger_than_the_slice_are_padded(store: SliceStore) -> None:
    images, _, _ = store.batch(_first(store, 1), crop=32, generator=np.random.default_rng(0))
    np.testing.assert_array_equal(images[0, :, 4:28, 8:24], store.stack("s02")[1])
    assert images.sum() == pytest.approx(store.stack("s02")[1].sum(), rel=1e-5)


def test_crops_depend_on_the_generator_only(store: SliceStore) -> None:
    picks = store.index("train")
    first, again, other = (store.batch(picks, crop=8, generator=np.random.default_rng(s))[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_absent_contrasts_are_said_and_zero(tmp_path: Path) -> None:
    store = fabricate_store(tmp_path, {"a": (True, False, True), "b": (True, True, True)}, test=["b"], val=[])
    images, available, _ = store.batch(store.index("train")[:1], crop=None, generator=np.random.default_rng(0))
    assert available.tolist() == [[True, False, True]]
    assert not images[0, 1].any()


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    store = fabricate_store(tmp_path, test=["s00"], val=[])
    assert store.counts() == {"train": 3, "val": 0, "test": 1}
    with pytest.raises(InputRefused, match="no subjects for val") as caught:
        store.subjects("val")
    assert caught.value.code == "DATA_SPLIT"
    with pytest.raises(UsageError, match="no split"):
        store.subjects("dev")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no subject 'nobody'"):
        store.stack("nobody")


def test_scale_is_recorded(store: SliceStore) -> None:
    assert store.preparation.intensity_scale == {"T1": 100.0, "T2": 100.0, "FLAIR": 100.0}


def test_record_survives_json(store: SliceStore) -> None:
    record = store.record("s02")
    assert SubjectRecord.from_dict(json.loads(json.dumps(record.as_dict()))) == record


def test_equal_data_have_equal_fingerprints(tmp_path: Path) -> None:
    one, two = fabricate_store(tmp_path / "1"), fabricate_store(tmp_path / "2")
    other = fabricate_store(tmp_path / "3", seed=1)
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_opening_does_not_depend_on_the_number_of_slices(tmp_path: Path) -> None:
    store = fabricate_store(tmp_path, 300, shape=(150, 8, 8))
    begin = time.perf_counter()
    opened = SliceStore.open(tmp_path)
    picks = opened.index("train")
    assert time.perf_counter() - begin < 3.0
    assert len(picks) == 240 * 149
    assert opened.fingerprint == store.fingerprint


def test_open_files_stay_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codebrain.data.slices._OPEN_FILES", 2)
    store = fabricate_store(tmp_path, 10)
    for name in store.names:
        store.stack(name)
    assert len(store._opened) == 4


def test_a_store_can_be_sent_to_a_worker(store: SliceStore) -> None:
    store.stack("s02")
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.stack("s02"), store.stack("s02"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(bytes(content))


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="no finished slice store") as caught:
        SliceStore.open(tmp_path)
    assert caught.value.code == "DATA_NONE"


@pytest.mark.row("F11")
@pytest.mark.parametrize("damage", [Path.unlink, _cut])
@pytest.mark.parametrize("name", ["s02.npy", "s02-brain.npy"])
def test_opening_finds_missing_and_cut_files(store: SliceStore, damage, name: str) -> None:
    damage(store.root / "slices" / name)
    with pytest.raises(InputRefused, match=name) as caught:
        SliceStore.open(store.root)
    assert caught.value.code == "DATA_CORRUPT"


def test_verify_finds_a_flipped_bit(store: SliceStore) -> None:
    store.verify()
    _flip(store.root / "slices" / "s02.npy")
    SliceStore.open(store.root)
    with pytest.raises(InputRefused, match=r"s02\.npy") as caught:
        store.verify()
    assert caught.value.code == "DATA_CORRUPT"


@pytest.mark.row("F11")
def test_a_file_that_vanishes_later_is_named(store: SliceStore) -> None:
    (store.root / "slices" / "s02.npy").unlink()
    with pytest.raises(InputRefused, match=r"s02\.npy"):
        store.batch(_first(store), crop=8, generator=np.random.default_rng(0))


def _cut_in_place(path: Path) -> None:
    os.truncate(path, 200)


def _edit_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def _put_another_in_its_place(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def _read_all(store: SliceStore) -> np.ndarray:
    return store.batch(store.index("train"), crop=16, generator=np.random.default_rng(0))[0]


@pytest.mark.row("F11")
@pytest.mark.parametrize("name", ["s02.npy", "s02-brain.npy"])
@pytest.mark.parametrize("damage", [_cut_in_place, _edit_in_place])
def test_a_file_that_is_damaged_while_it_is_open(store: SliceStore, damage, name: str) -> None:
    """A memory map would end the process with SIGBUS, or give what was edited without a word."""
    before = _read_all(store)
    damage(store.root / "slices" / name)
    with pytest.raises(InputRefused, match=name) as caught:
        _read_all(store)
    assert caught.value.code == "DATA_CORRUPT" and list(store.damaged) == ["s02"]
    with pytest.raises(InputRefused, match=name):
        store.stack("s02") if name == "s02.npy" else store.brain("s02")
    np.testing.assert_array_equal(_read_all(fabricate_store(store.root, test=["s00"], val=["s01"])), before)


@pytest.mark.row("F11")
def test_an_open_file_may_lose_its_name_or_be_touched(store: SliceStore) -> None:
    before = _read_all(store)
    path = store.root / "slices" / "s02.npy"
    os.utime(path, (0, 0))
    np.testing.assert_array_equal(_read_all(store), before)
    path.unlink()
    np.testing.assert_array_equal(_read_all(store), before)
    assert not store.damaged
    with pytest.raises(InputRefused, match=r"s02\.npy"):
        pickle.loads(pickle.dumps(store)).stack("s02")  # opened anew


@pytest.mark.row("F11")
@pytest.mark.parametrize("damage", [_edit_in_place, _put_another_in_its_place])
def test_a_file_that_was_edited_before_it_is_opened(store: SliceStore, damage) -> None:
    damage(store.root / "slices" / "s02.npy")
    with pytest.raises(InputRefused, match="not the one that was written"):
        _read_all(store)


@pytest.mark.row("F11")
def test_numbers_that_are_not_finite_have_no_place_in_a_store(store: SliceStore) -> None:
    path = store.root / "slices" / "s02.npy"
    content, nan = path.read_bytes(), np.full(store.record("s02").shape, np.nan, np.float16)
    start = len(content) - nan.nbytes
    path.write_bytes(content[:start].replace(b"<u2", b"<f2") + nan.tobytes())
    assert np.isnan(np.load(path)).all()
    trusted = replace(store.record("s02"), slices_sha256=sha256_bytes(path.read_bytes()))
    records = [trusted if record.subject == "s02" else record for record in store.manifest.records]
    with pytest.raises(InputRefused, match="float16"):
        _read_all(SliceStore(store.root, replace(store.manifest, records=tuple(records))))


@pytest.mark.row("F11")
def test_a_disk_that_fails_is_no_crash(store: SliceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    _read_all(store)
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(InputRefused, match="Input/output error"):
        _read_all(store)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda raw: raw | {"schema_version": 99}, "DATA_VERSION"),
        (lambda raw: raw | {"fingerprint": "0"}, "DATA_CORRUPT"),
        (lambda raw: raw | {"records": raw["records"][1:]}, "DATA_CORRUPT"),
        (lambda raw: raw | {"records": [{}]}, "DATA_CORRUPT"),
        (lambda raw: {k: v for k, v in raw.items() if k != "splits"}, "DATA_CORRUPT"),
        (lambda raw: [], "DATA_CORRUPT"),
    ],
)
def test_an_edited_manifest_is_refused(store: SliceStore, change, code: str) -> None:
    path = store.root / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputRefused) as caught:
        SliceStore.open(store.root)
    assert caught.value.code == code


def test_a_patient_moved_to_another_split_is_noticed(store: SliceStore) -> None:
    path = store.root / "manifest.json"
    raw = json.loads(path.read_text())
    next(row for row in raw["subjects"] if row["subject"] == "s00")["split"] = "train"
    path.write_text(json.dumps(raw))
    with pytest.raises(InputRefused, match="fingerprint"):
        SliceStore.open(store.root)


def test_a_torn_manifest_is_refused(store: SliceStore) -> None:
    _cut(store.root / "manifest.json")
    with pytest.raises(InputRefused, match="not JSON"):
        SliceStore.open(store.root)
