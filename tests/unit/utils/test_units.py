"""Sizes and durations as people write them."""

import math
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from utils.units import FOREVER, format_bytes, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (0, 0),
        (1073741824, 2**30),
        (12.0, 12),
        ("0", 0),
        ("300M", 300_000_000),
        ("300MB", 300_000_000),
        ("300 mb", 300_000_000),
        ("1GiB", 2**30),
        ("1 gib", 2**30),
        ("1Gi", 2**30),
        ("1.5 GB", 1_500_000_000),
        ("2k", 2000),
        ("2KiB", 2048),
        ("1T", 10**12),
        ("1TiB", 2**40),
        ("  7b ", 7),
        ("7", 7),
        ("0.5k", 500),
    ],
)
def test_sizes(written: object, count: int) -> None:
    assert parse_bytes(written) == count and isinstance(parse_bytes(written), int)


@pytest.mark.parametrize(
    "written",
    [
        "",
        " ",
        "MB",
        "-1",
        "-1MB",
        "1 2",
        "1,5GB",
        "1.GB",
        ".5GB",
        "1e9",
        "0x10",
        "nan",
        "inf",
        "1PB",
        "1GBB",
        "1G B",
        "5i",
        "5ib",
        "1bi",
        -1,
        -0.5,
        math.nan,
        math.inf,
        -math.inf,
        True,
        False,
        None,
        [],
        {},
        b"1",
        pytest.param("9" * 400 + "GB", id="huge"),
    ],
)
def test_what_is_no_size(written: object) -> None:
    with pytest.raises(ValueError):
        parse_bytes(written)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (0, 0.0),
        (90, 90.0),
        (1.5, 1.5),
        ("90", 90.0),
        ("90s", 90.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("1.5h", 5400.0),
        ("2d", 172800.0),
        ("250ms", 0.25),
        (" 5 M ", 300.0),
        (-1, FOREVER),
        ("-1", FOREVER),
        ("-5m", FOREVER),
        (-0.001, FOREVER),
    ],
)
def test_durations(written: object, seconds: float) -> None:
    assert parse_seconds(written) == pytest.approx(seconds) and isinstance(parse_seconds(written), float)


@pytest.mark.parametrize(
    "written",
    [
        "",
        " ",
        "s",
        "five minutes",
        "5 min",
        "5mm",
        "1:30",
        "1e3",
        "nan",
        "inf",
        "--1",
        math.nan,
        math.inf,
        True,
        None,
        [],
        {},
        pytest.param(10**400, id="huge integer"),
        pytest.param("9" * 400, id="huge"),
        pytest.param("9" * 400 + "h", id="huge, in hours"),
    ],
)
def test_what_is_no_duration(written: object) -> None:
    with pytest.raises(ValueError):
        parse_seconds(written)


anything = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=3)
    | st.from_regex(r"\A\s*-?[0-9]{1,4}(\.[0-9]{1,3})?\s*[kKmMgGtTsShHdDiIbB]{0,3}\s*\Z")
    | st.integers(-(10**320), 10**320)
)


@settings(max_examples=200, deadline=None, database=None)
@given(written=anything)
def test_anything_else_is_a_value_error(written: Any) -> None:
    """Never another exception: only ValueError becomes one line for the person who wrote it."""
    for parse in (parse_bytes, parse_seconds):
        try:
            found = parse(written)
        except ValueError:
            continue
        assert isinstance(found, int) or math.isfinite(found)
        assert found >= 0 or found == FOREVER


@settings(max_examples=100, deadline=None, database=None)
@given(count=st.integers(0, 10**15))
def test_a_formatted_size_reads_back_within_its_rounding(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.05, abs=0.5)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (98_432_100, "98.4 MB"),
        (5_300_000_000, "5.3 GB"),
        (2_000_000_000_000, "2.0 TB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text
