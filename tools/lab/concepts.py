"""Which things the lab's images show: the main concepts, the words for them, and what is left out, and why.

The main concepts were listed before any model was trained: things that every style draws, one of each family of
look-alikes. Names are the short names of the Unicode emoji data; the words in captions come from the Noto icon set's
names.
"""

from __future__ import annotations

__all__ = ["CORE_CATEGORIES", "LEFT_OUT_SUBCATEGORIES", "LEFT_OUT_WORDS", "MAIN_CONCEPTS", "NAMES"]

MAIN_CONCEPTS: tuple[str, ...] = tuple(
    """
    mouse2 tiger2 cat2 crocodile whale2 snail snake racehorse sheep monkey rooster dog2 pig2 elephant octopus shell bug
    ant bee ladybug fish tropical_fish blowfish turtle hatching_chick bird penguin koala camel dolphin frog wolf bear
    panda_face spider
    cactus palm_tree deciduous_tree tulip cherry_blossom rose hibiscus sunflower four_leaf_clover maple_leaf mushroom
    corn tomato eggplant grapes watermelon tangerine lemon banana pineapple apple pear peach cherries strawberry
    hamburger pizza meat_on_bone poultry_leg rice_ball ramen bread fries dango sushi fried_shrimp icecream doughnut
    cookie chocolate_bar candy lollipop honey_pot cake birthday wine_glass cocktail beer coffee
    jack_o_lantern christmas_tree balloon trophy soccer basketball baseball football dart 8ball game_die bowling guitar
    violin saxophone trumpet video_game tent ferris_wheel
    rocket helicopter airplane steam_locomotive bus ambulance fire_engine police_car taxi tractor bike ship boat anchor
    traffic_light house church european_castle mount_fuji volcano statue_of_liberty moyai rainbow snowman_without_snow
    key lock bell hammer wrench scissors bomb pill syringe ring gem crown tophat eyeglasses jeans dress kimono bikini
    handbag boot lipstick camera tv radio phone battery electric_plug bulb candle microscope telescope hocho door
    toilet bathtub books pencil2 paperclip moneybag fire cloud
    """.split()
)
"""168 things, all drawn in every style; training shows them more often than others."""

NAMES: dict[str, str] = {
    "four_leaf_clover": "four-leaf clover",
    "8ball": "pool ball",
    "jack_o_lantern": "jack-o-lantern",
    "bee": "bee",
    "sheep": "sheep",
    "moyai": "stone face",
    "ladybug": "ladybug",
    "corn": "corn",
    "ramen": "noodle bowl",
    "coffee": "cup of coffee",
    "camel": "camel",
    "dromedary_camel": "dromedary",
    "bike": "bicycle",
    "lock": "lock",
    "boot": "boot",
    "snowman_without_snow": "snowman",
    "snowman": "snowman in falling snow",
    "traffic_light": "traffic light",
    "shell": "shell",
}
"""Plain words where the icon's name is not one."""

CORE_CATEGORIES: frozenset[str] = frozenset(
    {"Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects"}
)
"""Categories the extra training concepts come from; faces, people, symbols and flags are left out."""

LEFT_OUT_SUBCATEGORIES: frozenset[str] = frozenset({"time"})
"""Twenty-four clock faces differ in two lines: no caption tells them apart at this size."""

LEFT_OUT_WORDS: tuple[str, ...] = ("moon", "oncoming", "envelope", "mailbox", "notebook", "page")
"""Families of look-alikes among the extra concepts."""
