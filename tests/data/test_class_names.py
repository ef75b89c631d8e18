"""Names of classes in prompts: by name or number, not by the order of folders sorted as text; no WordNet numbers."""

from __future__ import annotations

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
    assert prompt_names(NUMBERS, NUMBERS) == NUMBERS  # numbers that are given are meant
    assert prompt_names(["a"], None) == ["a"] and prompt_names(None, ["a"]) == ["a"] and not prompt_names(None, None)


def test_one_class_is_seen() -> None:
    samples = [{"labels": 1}, {"labels": 1}]
    assert not several_classes(samples) and several_classes([*samples, {"labels": 0}])
    assert several_classes([{"pixel_values": 0}]) and several_classes(None)
