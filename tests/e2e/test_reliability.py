"""Short versions of the scripts in reliability/ (docs/reliability.md): full disks, kills, flipped bits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import scans

sys.path.insert(0, str(Path(__file__).parents[2] / "reliability"))
import bit_flips
import full_disk
import kills


@pytest.mark.parametrize(
    ("command", "every"),
    [
        ("impute --overwrite", 17),
        ("report", 2),
        ("prepare --resume, one study more", 5),
        ("a model folder replaced", 7),
        ("prepare", 11),
    ],
)
def test_a_full_disk(command, every):
    (tally,) = full_disk.run(command, every)
    assert tally.tried >= 5 and not tally.broken


def test_a_full_disk_while_training():
    (tally,) = full_disk.run("train", 97)
    assert tally.tried >= 4 and not tally.broken


def test_sigkill_at_random_instants():
    killed, ended = kills.run("prepare", 4, studies=5)
    assert killed.tried >= 4 and ended.tried >= 1 and not killed.broken + ended.broken


def test_flipped_bits(tmp_path):
    flipper = bit_flips.Flipper(scans.write_scan(tmp_path / "T1.nii.gz"), tmp_path)
    for bits in (bit_flips.random_bits(flipper, 100, seed=0), bit_flips.frame_bits(flipper)):
        tally, outcomes = bit_flips.flips(flipper, bits, "one bit flipped")
        assert tally.tried == len(bits) and not tally.broken
        read = {part: codes["same"] for part, codes in outcomes.items() if codes["same"]}
        assert read.keys() <= {"FLG: text", "MTIME", "XFL", "OS", "stream"}
    anywhere = bit_flips.flips(flipper, bit_flips.random_bits(flipper, 100, seed=1), "one bit flipped")[1]["stream"]
    assert anywhere["same"] <= 15, "most of a smooth toy head is runs of zeros; a real scan has none of these"


def test_a_script_that_sees_a_broken_promise_says_so(capsys):
    tally = full_disk.Tally("a promise")
    tally.add("first", [])
    tally.add("second", ["a file is missing"])
    assert full_disk.report([tally]) == 1 and full_disk.report([]) == 0
    assert "| a promise | 2 | 1 |" in capsys.readouterr().out
    assert full_disk.report([full_disk.Tally("never tried")]) == 1
