"""The classes of the lab's sets.

The zero-shot classes were chosen among the main concepts on the validation style, once the CLIP was trained.
"""

from __future__ import annotations

__all__ = ["DIGIT_CLASSES", "FASHION_CLASSES", "ZERO_SHOT_CONCEPTS"]

ZERO_SHOT_CONCEPTS: tuple[str, ...] = tuple(
    " ".join(
        """
        airplane, ambulance, american football, anchor, balloon, baseball, basketball, bathtub, bear,
        beer mug, bell, bikini, birthday cake, bomb, boot, bread, bullseye, bus, cactus, camel, candle,
        cherries, cherry blossom, christmas tree, church, cloud, cocktail glass, cookie, corn, crown, cup
        of coffee, deciduous tree, dolphin, door, doughnut, eggplant, electric plug, elephant, fire,
        fish, four-leaf clover, french fries, fried shrimp, glasses, guitar, hamburger, hammer, handbag,
        hibiscus, honey pot, jack-o-lantern, jeans, key, kitchen knife, ladybug, light bulb, lipstick,
        lock, locomotive, maple leaf, microscope, money bag, mount fuji, palm tree, panda, paperclip,
        peach, pencil, penguin, pill, pineapple, police car, pool ball, poultry leg, rainbow, red apple,
        rice ball, ring, rocket, rooster, rose, saxophone, scissors, ship, soccer ball, spider, statue of
        liberty, stone face, sunflower, tangerine, taxi, telephone, television, tent, top hat, traffic
        light, trophy, tulip, turtle, video game, violin, watermelon, whale, wine glass
        """.split()
    ).split(", ")
)
"""The zero-shot classes: what `tools.lab.choose_concepts` printed for the shipped CLIP."""

FASHION_CLASSES = (
    *("t-shirt", "trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
DIGIT_CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
