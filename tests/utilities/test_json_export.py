"""Numpy values become what JSON can hold, in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nnunetv2.utilities.json_export import fix_types_iterable, json_ready, recursive_fix_for_json_export


def test_a_dictionary_is_fixed_in_place_and_keeps_order_and_tuples() -> None:
    inner = {"x": np.arange(3)}
    content = {"a": np.float32(1.5), "b": [np.int64(1), (np.int8(1), 2)], np.int64(4): 5, "d": inner, "c": Path("/x")}
    assert recursive_fix_for_json_export(content) is None
    assert content == {"a": 1.5, "b": [1, (1, 2)], 4: 5, "d": {"x": [0, 1, 2]}, "c": "/x"}
    assert list(content) == ["a", "b", 4, "d", "c"]
    assert content["d"] is inner
    assert [type(value) for value in (content["a"], content["b"][0], content["b"][1][0], list(content)[2])] == [float, int, int, int]


def test_a_copy_leaves_the_original() -> None:
    original = {"a": {"b": np.float64(1)}}
    copy = json_ready(original)
    assert type(copy["a"]["b"]) is float
    assert type(original["a"]["b"]) is np.float64


def test_devices_and_types_of_torch_become_text() -> None:
    import torch

    assert json_ready({"device": torch.device("cpu"), "type": torch.float32}) == {"device": "cpu", "type": "torch.float32"}


def test_an_iterable_is_fixed_into_the_wanted_container() -> None:
    assert fix_types_iterable((np.int64(1), 2.0), list) == [1, 2.0]
    assert fix_types_iterable([np.bool_(True)], tuple) == (True,)
