"""Names of things and wording of answers, in English and Chinese."""

from __future__ import annotations

from tools.nano.scenes import Box, Change, Scene, Thing

LANGUAGES = ("en", "zh")
KIND_ZH = {
    "mug": "杯子",
    "ball": "球",
    "star": "星星",
    "house": "房子",
    "tree": "树",
    "car": "汽车",
    "fish": "鱼",
    "bottle": "瓶子",
    "umbrella": "雨伞",
    "heart": "爱心",
}
COLOUR_ZH = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "purple": "紫色",
    "orange": "橙色",
    "white": "白色",
    "black": "黑色",
}
PLURAL = {"fish": "fish"}

Names = tuple[str | None, str | None]  # colour and kind; None leaves it open


def phrase(names: Names, language: str) -> str:
    """Words for things, such as red mug, mug, red object; 红色的杯子, 杯子, 红色的东西."""
    colour, kind = names
    if language == "zh":
        noun = KIND_ZH[kind] if kind else "东西"
        return f"{COLOUR_ZH[colour]}的{noun}" if colour else noun
    return f"{colour + ' ' if colour else ''}{kind or 'object'}"


def plural(names: Names, language: str) -> str:
    """Plural, such as red mugs, red objects; Chinese nouns have none."""
    one = phrase(names, language)
    return one if language == "zh" else PLURAL.get(one.split()[-1], one + "s") if " " not in one else _plural_en(one)


def _plural_en(one: str) -> str:
    head, noun = one.rsplit(" ", 1)
    return f"{head} {PLURAL.get(noun, noun + 's')}"


def article(text: str) -> str:
    """Words after their article, such as a red mug, an umbrella."""
    return f"{'an' if text[0] in 'aeio' or text.startswith('umb') else 'a'} {text}"


def sentence(text: str) -> str:
    """First letter in upper case."""
    return text[0].upper() + text[1:]


def corners(points: list[tuple[float, float]]) -> str:
    """Points in fractions of the picture as the model writes them, on the 0..999 grid."""
    grid = [(min(max(int(x * 1000), 0), 999), min(max(int(y * 1000), 0), 999)) for x, y in points]
    return ",".join(f"({x},{y})" for x, y in grid)


def box_markup(box: Box) -> str:
    """<box>(x1,y1),(x2,y2)</box>."""
    return f"<box>{corners([(box[0], box[1]), (box[2], box[3])])}</box>"


def grounded(label: str, boxes: list[Box]) -> str:
    """One phrase with its boxes, from left to right."""
    return f"<ref>{label}</ref>" + "".join(box_markup(box) for box in sorted(boxes))


def the(names: Names, language: str) -> str:
    """A known thing, such as the red mug; 红色的杯子."""
    one = phrase(names, language)
    return one if language == "zh" else f"the {one}"


def some(thing: Thing, language: str) -> str:
    """Any such thing, such as a red mug; 红色的杯子."""
    one = phrase((thing.colour, thing.kind), language)
    return one if language == "zh" else article(one)


def nothing_there(what: str, language: str) -> str:
    """Answer that the thing asked for is not in the picture."""
    return f"图中没有{what}。" if language == "zh" else f"There is no {what} in the picture."


def left_to_right(scene: Scene) -> list[Thing]:
    """The things in the order in which a caption names them."""
    return sorted(scene.things, key=lambda t: t.box[0] + t.box[2])


def caption(scene: Scene, language: str) -> str:
    """All things from left to right, then the sign."""
    parts = [some(t, language) for t in left_to_right(scene)]
    if scene.sign:
        text = scene.sign.text
        parts.append(f"写着{text}的牌子" if language == "zh" else f"a sign that says {text}")
    if language == "zh":
        return "和".join(["、".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) + "。"
    return sentence(" and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)) + "."


def changed(change: Change, language: str) -> str:
    """The answer that names the change in the second picture."""
    before, after = change.before, change.after
    if change.what == "gone" and before:
        name = the((before.colour, before.kind), language)
        return f"{name}不见了。" if language == "zh" else f"{sentence(name)} is gone."
    if change.what == "added" and after:
        return f"多了{some(after, language)}。" if language == "zh" else f"{sentence(some(after, language))} was added."
    if change.what == "colour" and before and after:
        name = the((before.colour, before.kind), language)
        if language == "zh":
            return f"{name}变成了{COLOUR_ZH[after.colour]}。"
        return f"{sentence(name)} is now {after.colour}."
    return "没有变化。" if language == "zh" else "Nothing changed."
