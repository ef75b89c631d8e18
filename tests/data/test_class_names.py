"""Names of classes in prompts: by name or number, not by the order of folders sorted as text; no WordNet numbers."""

from __future__ import annotations

from fare_hf.data.class_names import mapping_line, prompt_names, several_classes

NUMBERS = sorted(str(number) for number in range(12))


def test_names_given_in_numeric_order_go_to_the_folders_of_those_numbers() -> None:
    names = prompt_names(NUMBERS, [f"class {number}" for number in range(12)])
    assert dict(zip(NUMBERS, names, strict=True)) == {str(number): f"class {number}" for number in range(12)}
    assert mapping_line(NUMBERS, names) == (
        "12 classes in prompts: '0' is 'class 0', '1' is 'class 1', '10' is 'class 10', '11' is 'class 11', "
        "'2' is 'class 2', '3' is 'class 3', '4' is 'class 4', '5' is 'class 5', '6' is 'class 6', '7' is 'class 7', "
        "'8' is 'class 8', '9' is 'class 9'"
    )
    assert prompt_names(["1", "10", "2"], ["one", "two", "ten"]) == ["one", "ten", "two"]


def test_the_folders_own_names_are_taken_by_name_and_others_in_order() -> None:
    assert prompt_names(["a", "b"], ["b", "a"]) == ["a", "b"]
    assert prompt_names(["n01440764", "n01443537"], ["tench", "goldfish"]) == ["tench", "goldfish"]
    assert prompt_names(NUMBERS, NUMBERS) == NUMBERS  # numbers that are given are meant
    assert prompt_names(["a"], None) == ["a"] and prompt_names(None, ["a"]) == ["a"] and not prompt_names(None, None)


def test_a_wrong_order_is_seen_among_few_classes_and_the_ends_of_many() -> None:
    own, given = ["blue", "green", "pink", "red"], ["azure", "rose", "olive", "crimson"]
    line = "4 classes in prompts: 'blue' is 'azure', 'green' is 'rose', 'pink' is 'olive', 'red' is 'crimson'"
    assert mapping_line(own, prompt_names(own, given)) == line
    assert mapping_line(None, ["a", "b"]) == "2 classes in prompts: '0' is 'a', '1' is 'b'"
    many = [f"class {number}" for number in range(21)]
    ends = "'0' is 'class 0', '1' is 'class 1', '2' is 'class 2', ..., '20' is 'class 20'"
    assert mapping_line(None, many) == f"21 classes in prompts: {ends}"


def test_one_class_is_seen() -> None:
    samples = [{"labels": 1}, {"labels": 1}]
    assert not several_classes(samples) and several_classes([*samples, {"labels": 0}])
    assert several_classes([{"pixel_values": 0}]) and several_classes(None)
