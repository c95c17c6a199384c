"""``doctor`` says of every row what ``impute`` does with it: the same code, the same warnings."""

from __future__ import annotations

import pytest
import test_a_containers
import test_b_intensities
import test_c_geometry
from inputs import as_parameters

from codebrain.imaging.examine import examine
from codebrain.imaging.volume import read_volume

OWN = {"MOD_NAME", "IN_SYNTHETIC"}
"""What only ``doctor`` warns of."""

ROWS = [
    row
    for module in (test_a_containers, test_b_intensities, test_c_geometry)
    for row in module.ROWS
    if row.number != "A10" and "--accept" not in row.flags
]


@pytest.mark.parametrize("row", as_parameters(ROWS))
def test_the_same_verdict(row, tmp_path):
    path = tmp_path / row.name
    path.write_bytes(row.make())
    chosen = {"volume_index": int(row.flags[1])} if "--volume" in row.flags else {}
    found = examine(path, **chosen)
    assert found.usable is (row.code is None)
    if row.code:
        (finding,) = found.findings
        assert (finding.code, finding.severity) == (row.code, "refused")
        assert finding.message and (finding.advice or finding.mendings)
        return
    codes = {finding.code for finding in found.findings} - OWN
    assert codes == set((row.warning or "").split()) == {n.code for n in read_volume(path, **chosen).notices}
    assert found.header is not None and found.image is not None
