"""Sweep files are YAML 1.2."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.errors import UserError
from sweeper.sweep.load import load_sweep
from sweeper.sweep.yaml_file import MOST_LEVELS, parse_yaml

PLAIN: dict[str, Any] = {
    "010": 10,
    "-07": -7,
    "+3": 3,
    "0o17": 15,
    "0x1F": 31,
    "08": 8,
    "1e-5": 1e-5,
    "1E3": 1000.0,
    "-2.5e+1": -25.0,
    ".5": 0.5,
    "5.": 5.0,
    "-.inf": -math.inf,
    "true": True,
    "False": False,
    "null": None,
    "~": None,
    "": None,
}
TEXT = ["1:30", "190:20:30", "-1:30", "1:30.5", "no", "Yes", "on", "OFF", "y", "n", "1_2", "0b11", "0x1_0", "-0o7"]
TEXT += ["2020-01-01", "2020-01-01 10:00:00", "1e", "e5", "1.5.2", ".", "-", "inf", "nan", "=", "0x", "tRUE", "none"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=20),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text("abcé 01", max_size=5), children, max_size=4)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("text", sorted(PLAIN))
def test_what_the_core_schema_does_not_call_text(text: str) -> None:
    value = parse_yaml(f"[{text}, x]" if text else "[null, x]", "It")[0]
    assert (type(value), value) == (type(PLAIN[text]), PLAIN[text])
    assert parse_yaml(f"{{{text or '~'}x: 1}}", "It") == {f"{text or '~'}x": 1}


@pytest.mark.parametrize("text", TEXT)
@pytest.mark.parametrize("version", ["", "%YAML 1.1\n---\n", "%YAML 1.2\n---\n"])
def test_all_else_is_text(text: str, version: str) -> None:
    quoted = "'-'" if text == "-" else text
    assert parse_yaml(f"{version}{quoted}: [{quoted}]", "It") == {text: [text]}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(JSON)
def test_json_is_yaml(value: Any) -> None:
    assert parse_yaml(json.dumps(value), "It") == value
    assert parse_yaml(json.dumps(value, ensure_ascii=False, indent=1), "It") == value


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 2**62), st.integers(0, 5))
def test_leading_zeros_say_nothing(number: int, zeros: int) -> None:
    assert parse_yaml("0" * zeros + str(number), "It") == number


MAPPINGS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9), max_size=4)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(MAPPINGS, MAPPINGS, MAPPINGS)
def test_own_keys_win_over_merged_ones_and_the_first_merged_mapping_over_the_next(
    first: dict[str, int], second: dict[str, int], own: dict[str, int]
) -> None:
    keys = "".join(f", {key}: {value}" for key, value in own.items())
    text = f"{{deep: {{x: &a {json.dumps(first)}}}, y: &b {json.dumps(second)}, z: &c {{<<: [*a, *b]{keys}}}, w: {{<<: *c}}}}"
    value = parse_yaml(text, "It")
    assert value["z"] == value["w"] == second | first | own


def test_merging_hides_no_key_that_is_given_twice() -> None:
    with pytest.raises(UserError, match="line 2, column 19: key 'b' is given twice"):
        parse_yaml("a: &a {c: 1}\nd: {<<: *a, b: 1, b: 2}", "It")


def test_a_mapping_that_is_merged_before_it_is_read_itself_is_taken_for_no_double() -> None:
    value = parse_yaml("p: {d: {e: &a {<<: {b: 1}, b: 2}}}\nq: {<<: *a}", "It")
    assert value == {"p": {"d": {"e": {"b": 2}}}, "q": {"b": 2}}


def test_an_anchor_may_be_set_anew_and_what_it_repeats_is_not_shared() -> None:
    value = parse_yaml("a: &x [1]\nb: &x [2]\nc: *x\n", "It")
    assert value == {"a": [1], "b": [2], "c": [2]}
    value["b"].append(3)
    assert value["c"] == [2]


def test_levels_are_counted() -> None:
    assert parse_yaml("[" * (MOST_LEVELS - 1) + "]" * (MOST_LEVELS - 1), "It")
    with pytest.raises(UserError, match=f"It is not valid YAML: line 1, column 21: it nests more than {MOST_LEVELS}"):
        parse_yaml("[" * (MOST_LEVELS + 1) + "]" * (MOST_LEVELS + 1), "It")


def test_labels_and_numbers_of_a_sweep(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "datasets: [digits]\nattacks: []\nseeds: [010, 2]\ndefenses: {no: none, 1_2: {name: l2, weight: 1e-5}}\n"
        "parts: {on: , off: }\ncost: 1:30\n"
    )
    sweep = load_sweep(str(path), ["expected=2020-01-01", "parts.on.seeds=[007]"])
    assert [part.name for part in sweep.parts] == ["on", "off"]
    assert [part.seeds for part in sweep.parts] == [(7,), (10, 2)]
    assert list(sweep.parts[0].defenses) == ["no", "1_2"]
    assert (sweep.cost, sweep.expected) == ("1:30", "2020-01-01")
