"""Names of classes in prompts: by name or number, not by the order of folders sorted as text; no WordNet numbers."""

from __future__ import annotations

import pytest

from fare_hf.data.class_names import mapping_line, prompt_names, several_classes

NUMBERS = sorted(str(number) for number in range(12))


def test_names_given_in_numeric_order_go_to_the_folders_of_those_numbers() -> None:
    names = prompt_names(NUMBERS, [f"class {number}" for number in range(12)])
    assert dict(zip(NUMBERS, names, strict=True)) == {str(number): f"class {number}" for number in range(12)}
    assert mapping_line(NUMBERS, names) == "12 classes in prompts: '0' is 'class 0', ..., '9' is 'class 9'"
    assert prompt_names(["1", "10", "2"], ["one", "two", "ten"]) == ["one", "ten", "two"]


def test_the_folders_own_names_are_taken_by_name_and_others_in_order() -> None:
    assert prompt_names(["a", "b"], ["b", "a"]) == ["a", "b"]
    assert prompt_names(["n01440764", "n01443537"], ["tench", "goldfish"]) == ["tench", "goldfish"]
    assert prompt_names(["a"], None) == ["a"] and prompt_names(None, ["a"]) == ["a"] and not prompt_names(None, None)


def test_ambiguous_names_are_refused() -> None:
    with pytest.raises(ValueError, match="class_names gives 'b' to the class 'a' .* which has a class 'b'.*a, b"):
        prompt_names(["a", "b"], ["b", "bird"])
    with pytest.raises(ValueError, match="class_names has 1 names, 'set' 2 classes"):
        prompt_names(["a", "b"], ["a"], "set")
    with pytest.raises(ValueError, match="are WordNet's numbers, such as n01440764, .*: give --class_names with 2"):
        prompt_names(["n01440764", "n01443537"], None)
    with pytest.raises(ValueError, match="'set' are numbers, such as 0, .*: give --class_names with 12"):
        prompt_names(NUMBERS, None, "set")
    assert prompt_names(NUMBERS, NUMBERS) == NUMBERS  # said to be meant


def test_one_class_is_seen() -> None:
    samples = [{"labels": 1}, {"labels": 1}]
    assert not several_classes(samples) and several_classes([*samples, {"labels": 0}])
    assert several_classes([{"pixel_values": 0}]) and several_classes(None)
