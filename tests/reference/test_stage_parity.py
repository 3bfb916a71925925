"""The comparison with the published package sees what is different."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference import stage_parity


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ({"a": [1, 2.0], "b": None, "ours alone": 1}, []),
        ({"a": [1 + 1e-12, 2.0], "b": None}, []),
        ({"a": [1.001, 2.0], "b": None}, ["/a[0]: 1.001, reference 1"]),
        ({"a": [1], "b": None}, ["/a: [1], reference [1, 2.0]"]),
        ({"a": [True, 2.0], "b": None}, []),  # equal in JSON's arithmetic
        ({"a": [1, 2.0]}, ["/b is missing"]),
        ({"a": [1, 2.0], "b": "x"}, ["/b: 'x', reference None"]),
    ],
)
def test_differences_are_named_by_their_place(ours: dict, expected: list[str]) -> None:
    assert list(stage_parity.differences(ours, {"a": [1, 2.0], "b": None}, 1e-9)) == expected


def test_a_changed_voxel_and_a_changed_location_are_differences(tmp_path: Path) -> None:
    arrays = {"image": np.zeros((1, 2, 2, 2)), "segmentation": np.zeros((1, 2, 2, 2), int), "rows 1": np.zeros((3, 4), int)}
    (tmp_path / "ours").mkdir()
    np.savez(tmp_path / "case.npz", **arrays)
    file = tmp_path / "ours" / "case.npz"
    np.savez(file, **arrays)
    assert stage_parity.compare_case(file, tmp_path / "case.npz") == (0, [])
    arrays["image"][0, 0, 0, 0] = 2e-4
    arrays["segmentation"][0, 1, 1, 1] = 1
    arrays["rows 1"][2, 3] = 1
    np.savez(file, **arrays)
    worst, found = stage_parity.compare_case(file, tmp_path / "case.npz")
    assert worst == pytest.approx(2e-4)
    assert found == ["case: image differs by 0.0002", "case: segmentation", "case: rows 1"]
    np.savez(file, **arrays | {"image": np.zeros((1, 2, 2, 3))})
    assert "shape" in stage_parity.compare_case(file, tmp_path / "case.npz")[1][0]
