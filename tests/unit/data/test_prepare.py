from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from codebrain.data import prepare as module
from codebrain.data.isolated import death, hang, standstill
from codebrain.data.manifest import SubjectRecord, domain_of
from codebrain.data.prepare import prepare_folder
from codebrain.data.slices import SliceStore
from codebrain.errors import CodeBrainError, EnvironmentRefused, InputRefused, refusal
from codebrain.vocabulary import ModalitySet, Preparation, TrainingDomain
from fabricated import fabricate_study

PREPARATION = Preparation(ModalitySet.parse("T1,T2,FLAIR,T1Gd"), pixel_spacing_mm=None)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four patients, one with two visits; two contrasts in one of them; nobody has T1Gd but p-1."""
    root = tmp_path_factory.mktemp("studies")
    fabricate_study(root / "p-1", ("T1", "T2", "FLAIR", "T1Gd"), seed=1)
    fabricate_study(root / "p-2", seed=2, shape=(21, 27, 19))
    fabricate_study(root / "p-3", ("T1", "FLAIR"), seed=3)
    fabricate_study(root / "q-01-1", seed=4)
    fabricate_study(root / "q-01-2", seed=5)
    return root


def _prepare(studies: Path, target: Path, **options):  # type: ignore[no-untyped-def]
    settings = {"preparation": PREPARATION, "test": ["p-2"], "val": [], "jobs": 0} | options
    return prepare_folder(studies, target, **settings)


@pytest.fixture(scope="module")
def store(studies: Path, tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    target = tmp_path_factory.mktemp("out") / "store"
    _prepare(studies, target)
    return SliceStore.open(target)


def _table(root: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((root / "subjects.tsv").read_text().splitlines(), delimiter="\t"))


def test_everything_is_there(store: SliceStore) -> None:
    store.verify()
    assert store.names == ("p-1", "p-2", "p-3", "q-01-1", "q-01-2")
    assert store.subjects("test") == ("p-2",)
    assert [store.patient(name) for name in store.names] == ["p-1", "p-2", "p-3", "q-01", "q-01"]
    assert store.record("p-3").available == (True, False, True, False)
    assert store.record("p-1").available == (True, True, True, True)


def test_slices_are_upright_scaled_and_zero_where_absent(store: SliceStore) -> None:
    stack = store.stack("p-1")
    assert stack.min() == 0
    assert stack.max() == 1
    assert not store.stack("p-3")[:, 1].any()
    # The bright ball lies to the front, right and top. Slices run upwards, the front is at the top of each,
    # and left-right follows the affine's RAS order, so the ball is at high z, low row, high column.
    z, row, column = np.unravel_index(np.argmax(stack[:, 0]), stack[:, 0].shape)
    n, _, h, w = stack.shape
    assert z > n / 2
    assert row < h / 2
    assert column != w / 2


def test_the_mask_covers_what_is_not_background(store: SliceStore) -> None:
    mask, stack = store.brain("q-01-1"), store.stack("q-01-1")
    assert 0.3 < mask.mean() < 0.9
    assert not stack[:, 0][~mask].any()
    assert stack[:, 0][mask].mean() > 0.1


def test_records_undo_the_preparation(store: SliceStore) -> None:
    record = store.record("p-1")
    assert set(record.normalisations) == {"T1", "T2", "FLAIR", "T1Gd"}
    assert record.inputs["T1"]["file"] == "p-1/T1.nii.gz"
    assert record.full_slice[0] >= record.offset[0]
    assert record.intensity_range["T2"] == pytest.approx(1.5 * record.intensity_range["T1"], rel=0.3)


def test_the_scale_is_the_median_over_training_subjects(store: SliceStore) -> None:
    training = ["p-1", "p-3", "q-01-1", "q-01-2"]
    expected = np.median([store.record(name).intensity_range["T1"] for name in training])
    assert store.preparation.intensity_scale["T1"] == pytest.approx(expected)
    assert store.preparation.intensity_scale["T1Gd"] == store.record("p-1").intensity_range["T1Gd"]


def test_what_the_training_scans_were_like_is_recorded(store: SliceStore) -> None:
    """Of the training subjects; it goes into the model folder with the preparation."""
    assert store.preparation.domain == TrainingDomain(("stripped",), (6.0, 6.0), 1.0)
    assert {row["heads"] for row in _table(store.root)} == {"stripped"}


def test_a_record_from_before_there_was_a_domain(store: SliceStore) -> None:
    raw = store.record("p-1").as_dict()
    del raw["domain"]
    older = SubjectRecord.from_dict(raw)
    assert older.domain is None and older.as_dict() == raw  # so that its fingerprint is the same
    assert domain_of([older, store.record("p-2")]) is None


def test_no_machine_path_is_recorded(store: SliceStore, studies: Path) -> None:
    for path in [
        store.root / "manifest.json",
        store.root / "subjects.tsv",
        *store.root.glob("slices/*.json"),
    ]:
        assert str(studies.parent) not in path.read_text()


def test_the_table_has_a_row_for_every_study(store: SliceStore) -> None:
    rows = _table(store.root)
    assert [row["subject"] for row in rows] == list(store.names)
    assert rows[1]["split"] == "test"
    assert rows[2]["contrasts"] == "T1,FLAIR"


def test_preparing_twice_gives_the_same_store(studies: Path, store: SliceStore, tmp_path: Path) -> None:
    assert _prepare(studies, tmp_path / "again").fingerprint == store.fingerprint


def test_workers_give_the_same_store(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        fabricate_study(tmp_path / "studies" / name, ("T1", "T2"), seed=seed)
    seen = []
    here = _prepare(tmp_path / "studies", tmp_path / "here", test=["b"])
    there = _prepare(
        tmp_path / "studies", tmp_path / "there", test=["b"], jobs=2, progress=lambda *step: seen.append(step)
    )
    assert there.fingerprint == here.fingerprint
    assert [(done, total) for done, total, _ in seen] == [(1, 2), (2, 2)]
    assert {name for _, _, name in seen} == {"a", "b"}


@pytest.mark.row("F10")
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (death(-9), "status -9 (killed: not enough memory?)"),
        (hang(7200), "no progress for 7200 s and was ended"),
        (standstill(50), "neither computed, read, wrote nor answered for 50 s and was ended"),
    ],
)
def test_a_worker_that_is_killed_or_hangs_is_a_refused_study(
    error: CodeBrainError, sentence: str, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_one(function, tasks, *, jobs, died, patience_s, idle_s, threads):  # type: ignore[no-untyped-def]
        assert (patience_s, idle_s) == (7200, 50)
        for task in tasks:
            yield died(task, error) if task.subject.subject == "p-3" else function(task, print)

    monkeypatch.setattr(module, "isolated", lose_one)
    manifest = _prepare(studies, tmp_path / "store")
    assert manifest.count("prepared") == 4
    (row,) = [row for row in manifest.rows if row.status == "refused"]
    assert (row.subject, row.code) == ("p-3", error.code)
    assert sentence in row.message


@pytest.fixture
def damaged(studies: Path, tmp_path: Path) -> Path:
    """The studies with one file cut in half and one study with a single contrast."""
    root = tmp_path / "studies"
    root.mkdir()
    for study in studies.iterdir():
        (root / study.name).mkdir()
        for file in study.iterdir():
            (root / study.name / file.name).write_bytes(file.read_bytes())
    cut = root / "p-3" / "FLAIR.nii.gz"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (root / "lonely").mkdir()
    (root / "lonely" / "T1.nii.gz").write_bytes((root / "p-1" / "T1.nii.gz").read_bytes())
    return root


def test_a_bad_study_does_not_stop_the_others_and_can_be_mended(
    damaged: Path, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = _prepare(damaged, tmp_path / "store")
    rows = {row.subject: row for row in manifest.rows}
    assert (rows["p-3"].status, rows["p-3"].code) == ("refused", "IN_TRUNCATED")
    assert rows["p-3"].message.startswith("FLAIR.nii.gz: ")
    assert (rows["lonely"].status, rows["lonely"].code) == ("skipped", "DATA_CONTRASTS")
    assert manifest.count("prepared") == 4
    assert str(tmp_path) not in (tmp_path / "store" / "manifest.json").read_text()

    (damaged / "p-3" / "FLAIR.nii.gz").write_bytes((studies / "p-3" / "FLAIR.nii.gz").read_bytes())
    worked = _count_work(monkeypatch)
    assert _prepare(damaged, tmp_path / "store", resume=True).count("prepared") == 5
    assert worked == ["p-3"]


def _count_work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    worked: list[str] = []
    real = module.prepare_study

    def counted(study, *args, **kwargs):  # type: ignore[no-untyped-def]
        worked.append(study.name)
        return real(study, *args, **kwargs)

    monkeypatch.setattr(module, "prepare_study", counted)
    return worked


def test_resume_repeats_only_what_changed(
    studies: Path, store: SliceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "store"
    _prepare(studies, target)
    worked = _count_work(monkeypatch)
    assert _prepare(studies, target, resume=True).fingerprint == store.fingerprint
    assert worked == []

    (target / "manifest.json").unlink()
    (target / "slices" / "p-1.npy").write_bytes(b"damaged")
    (target / "slices" / "p-2.json").write_text("{")
    (target / "slices" / "q-01-1-brain.npy").unlink()
    assert _prepare(studies, target, resume=True).fingerprint == store.fingerprint
    assert worked == ["p-1", "p-2", "q-01-1"]

    worked.clear()
    _prepare(studies, target, resume=True, preparation=Preparation(PREPARATION.modalities, "min_max"))
    assert len(worked) == 5


def test_an_unfinished_store_is_not_opened(studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "store"
    _prepare(studies, target)

    def stop(done: int, total: int, subject: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _prepare(studies, target, overwrite=True, progress=stop)
    with pytest.raises(InputRefused, match="no finished slice store"):
        SliceStore.open(target)
    worked = _count_work(monkeypatch)
    _prepare(studies, target, resume=True)
    assert worked == []
    SliceStore.open(target).verify()
    assert not list(target.rglob(".*tmp*")) and not (target / ".codebrain.lock").exists()


def test_an_existing_store_is_kept(studies: Path, tmp_path: Path) -> None:
    target = tmp_path / "store"
    _prepare(studies, target)
    before = (target / "manifest.json").read_bytes()
    with pytest.raises(EnvironmentRefused, match="--resume") as caught:
        _prepare(studies, target)
    assert caught.value.code == "OUT_EXISTS"
    assert (target / "manifest.json").read_bytes() == before


def test_overwrite_leaves_no_strangers(studies: Path, tmp_path: Path) -> None:
    target = tmp_path / "store"
    _prepare(studies, target)
    (target / "slices" / "gone.npy").write_bytes(b"older store")
    _prepare(studies, target, overwrite=True)
    assert not (target / "slices" / "gone.npy").exists()
    SliceStore.open(target).verify()


def test_the_same_file_under_two_patients_is_refused(studies: Path, tmp_path: Path) -> None:
    root = tmp_path / "studies"
    for name in ("p-1", "p-2", "z-1"):
        (root / name).mkdir(parents=True)
        source = studies / ("p-1" if name == "z-1" else name)
        for file in ("T1.nii.gz", "T2.nii.gz"):
            (root / name / file).write_bytes((source / file).read_bytes())
    rows = {row.subject: row for row in _prepare(root, tmp_path / "store").rows}
    assert (rows["z-1"].status, rows["z-1"].code) == ("refused", "DATA_DUPLICATE")
    assert rows["p-1"].status == "prepared"


def test_names_are_checked_before_the_work(studies: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    worked = _count_work(monkeypatch)
    with pytest.raises(InputRefused, match="ms-19"):
        _prepare(studies, tmp_path / "store", test=["ms-19"])
    assert worked == []
    assert not (tmp_path / "store").exists()


def test_a_test_set_that_was_refused_as_a_whole(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="every study asked for in test was refused") as caught:
        _prepare(damaged, tmp_path / "store", test=["p-3"])
    assert caught.value.code == "DATA_SPLIT"


def test_all_refused(damaged: Path, tmp_path: Path) -> None:
    for file in damaged.rglob("*.nii.gz"):
        file.write_bytes(b"")
    with pytest.raises(InputRefused, match="no study could be prepared") as caught:
        _prepare(damaged, tmp_path / "store")
    assert caught.value.code == "DATA_EMPTY"
    table = (tmp_path / "store" / "subjects.tsv").read_text()
    assert table.count("IN_EMPTY") == 5


def test_inputs_are_never_touched(studies: Path, tmp_path: Path) -> None:
    def state() -> dict[Path, tuple[bytes, int]]:
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in studies.rglob("*") if p.is_file()}

    before = state()
    _prepare(studies, tmp_path / "store")
    assert state() == before


@pytest.mark.parametrize("place", [".", "p-1", "out", ".."])
def test_a_store_inside_its_source_is_refused(studies: Path, place: str) -> None:
    with pytest.raises(EnvironmentRefused, match="inside one another") as caught:
        _prepare(studies, studies / place)
    assert caught.value.code == "OUT_CLOBBER"


def test_no_parent_folder(studies: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentRefused) as caught:
        _prepare(studies, tmp_path / "a" / "b")
    assert caught.value.code == "OUT_PERMISSION"


def test_a_full_disk_stops_everything(studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(task) -> None:  # type: ignore[no-untyped-def]
        raise refusal("OUT_SPACE", "the file could not be written: no space left on device")

    monkeypatch.setattr(module, "prepare_subject", full)
    with pytest.raises(EnvironmentRefused, match="no space left"):
        _prepare(studies, tmp_path / "store")
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_other_grids_are_aligned_or_refused(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    root = tmp_path / "studies"
    fabricate_study(root / "a", ("T1", "T2"), seed=1)
    fabricate_study(root / "b", ("T1", "T2"), seed=2, shift={"T2": 6.0})
    rows = {row.subject: row for row in _prepare(root, tmp_path / "store", test=[], align="auto").rows}
    assert rows["b"].status == "prepared"
    with pytest.raises(InputRefused):
        _prepare(root, tmp_path / "other", test=[], align="none")
    table = _table(tmp_path / "other")
    assert [(row["subject"], row["code"]) for row in table if row["status"] == "refused"] == [("b", "GEO_MISMATCH")]


def test_manifest_is_json_without_nan(store: SliceStore) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    raw = json.loads((store.root / "manifest.json").read_text(), parse_constant=refuse)
    assert raw["schema_version"] == 1
    assert raw["created_by"].startswith("codebrain ")


def test_fewer_studies_at_a_time_where_memory_is_short(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {}

    def seen(function, tasks, **how):  # type: ignore[no-untyped-def]
        asked.update(how)
        yield from (function(task, print) for task in tasks)

    monkeypatch.setattr(module, "isolated", seen)
    monkeypatch.setattr("codebrain.machine.memory_limit", lambda: 4 << 30)
    monkeypatch.setattr(module, "allotted_cores", lambda: 8)
    _prepare(studies, tmp_path / "store", jobs=8)
    assert (asked["jobs"], asked["threads"]) == (2, 4)
    assert "2 studies at a time instead of 8" in caplog.text


def test_a_frame_and_slices_are_part_of_the_task(studies: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / "store"
    _prepare(studies, target)
    worked = _count_work(monkeypatch)
    framed = Preparation(PREPARATION.modalities, pixel_spacing_mm=None, frame=(40, 32))
    manifest = _prepare(studies, target, preparation=framed, resume=True)
    assert len(worked) == 5
    assert {record.shape[2:] for record in manifest.records} == {(40, 32)} == {r.full_slice for r in manifest.records}
    assert {record.offset for record in manifest.records} == {(0, 0)}


def test_libraries_write_their_temporary_files_into_the_store(studies: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import tempfile

    places, real, before = [], module.prepare_study, tempfile.gettempdir()

    def looked(study, *args, **kwargs):  # type: ignore[no-untyped-def]
        places.append(Path(tempfile.gettempdir()))
        return real(study, *args, **kwargs)

    monkeypatch.setattr(module, "prepare_study", looked)
    _prepare(studies, tmp_path / "store")
    assert {place.parent for place in places} == {tmp_path / "store"} and len(set(places)) == 5
    assert tempfile.gettempdir() == before
    assert not [path for path in (tmp_path / "store").iterdir() if path.name.startswith(".")]
