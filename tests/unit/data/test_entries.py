from __future__ import annotations

import json
from collections import OrderedDict
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from framework.data.entries import decode_entry, encode_entry


class Colour(IntEnum):
    RED = 1


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -1, 1 << 80, 0.1, -0.0, "", " \n\t", "½ 　x", "$tuple"),
        *((), (1, (2, [3, (4,)])), [[(1, 2)], []], {0: 1, 10: 2}, {(0, 1): "a"}, {"1": 1, 1: 2}, {"$tuple": [1]}),
        *({"$a": 1, "b": (1,)}, {1, 2}, {("a", 1)}, frozenset({"x"}), set(), range(0, 9, 2), b"\x00\xff", 1 + 2j),
        *(Fraction(1, 3), Decimal("0.10"), date(2024, 2, 29), datetime(2024, 2, 29, 1, 2), time(1, 2), timedelta(1, 2)),
        *(float("inf"), -float("inf"), np.float64(0.1), np.int8(3), np.str_("x"), np.bool_(True)),
    ],
    ids=repr,
)
def test_a_value_comes_back_in_its_type(value: Any) -> None:
    found = decode_entry(encode_entry({"question": "q", "value": value, "nested": [{"value": value}]}))
    for copy in (found["value"], found["nested"][0]["value"]):
        assert repr(copy) == repr(value)  # tells 1 from True and 1.0, and a tuple from a list, at any depth
        assert type(copy) is type(value)


def test_arrays_come_back_with_their_type_and_shape() -> None:
    board = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    copy = decode_entry(encode_entry({"board": board}))["board"]
    assert (copy.dtype, copy.tolist()) == (board.dtype, board.tolist())
    assert np.isnan(decode_entry(encode_entry({"x": float("nan")}))["x"])


def test_the_text_is_strict_json_and_plain_json_reads_as_it_is() -> None:
    text = encode_entry({"x": float("nan"), "y": (1,)})
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    plain = {"question": "q", "answer": "a", "metadata": {"n": [1, {"k": 2.5}]}}
    assert decode_entry(json.dumps(plain)) == plain


@pytest.mark.parametrize(
    ("value", "place"),
    [(Colour.RED, r"entry\.a is of type .*Colour"), ([object()], r"entry\.a\[0\]"), (OrderedDict(a=1), "OrderedDict")],
)
def test_what_would_not_come_back_is_refused(value: object, place: str) -> None:
    with pytest.raises(TypeError, match=place):
        encode_entry({"a": value})


@pytest.mark.parametrize(
    "text", ["[1]", "{", '{"a": {"$numpy": ["nonsense", 1]}}', '{"a": {"$fraction": "1/0"}}', '{"a": {"$dict": 3}}']
)
def test_a_damaged_record_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode_entry(text)
