"""Which outcomes are not final: pure rules."""

from __future__ import annotations

from typing import Any

import pytest
from helpers_line import quick_config

from wbcd.daemon.reopening import ABSENT, BY_HAND, CONDITIONAL, conditions_of, is_open_again

NOW = {"max_logical_bytes": 100, "max_file_bytes": 100, "same_acquisition": "duplicate", "wbcd_version": "2"}


@pytest.mark.parametrize(
    ("reason", "then", "again"),
    [
        ("input.too_large", {"max_logical_bytes": 99}, True),
        ("input.too_large", {"max_file_bytes": 99}, True),
        ("input.too_large", {"max_logical_bytes": 101}, False),
        ("input.reader_died", {"max_logical_bytes": 99}, True),
        ("input.reader_died", {"wbcd_version": "1"}, True),
        ("unforeseen", {"wbcd_version": "1"}, True),
        ("unforeseen", {}, False),
        ("input.bad_field", {"wbcd_version": "1", "max_logical_bytes": 1}, False),
        ("input.poison", {"wbcd_version": "1"}, False),
        ("input.same_acquisition", {}, False),
    ],
)
def test_only_what_lets_more_pass_opens_an_outcome_again(reason: str, then: dict[str, Any], again: bool) -> None:
    assert is_open_again(reason, {**NOW, **then}, NOW) is again
    assert not is_open_again(reason, NOW, NOW)


def test_both_formats_counted_opens_the_duplicate() -> None:
    assert is_open_again("input.same_acquisition", NOW, {**NOW, "same_acquisition": "count"})


def test_what_nobody_wrote_down_is_tried_once() -> None:
    assert all(is_open_again(reason, None, NOW) for reason in CONDITIONAL)
    assert not is_open_again("input.bad_field", None, NOW)


def test_the_conditions_are_those_of_the_site(tmp_path: Any) -> None:
    found = conditions_of(quick_config(tmp_path, **{"limits.max_logical_bytes": 2**21}))
    assert found["max_logical_bytes"] == 2**21
    assert found.keys() == NOW.keys()


def test_a_share_that_was_away_is_no_condition_of_the_site() -> None:
    assert set(ABSENT) <= set(BY_HAND)
    assert not set(ABSENT) & set(CONDITIONAL)
