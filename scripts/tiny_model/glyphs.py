"""The classes of the tiny model and the Noto Color Emoji glyphs that stand for them."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

BITMAP_SIZE = 109  # the one size at which Noto Color Emoji holds its bitmaps

FONT_PLACES = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-color-emoji-fonts/NotoColorEmoji.ttf",
    "/usr/local/share/fonts/NotoColorEmoji.ttf",
    "~/.local/share/fonts/NotoColorEmoji.ttf",
    "~/.fonts/NotoColorEmoji.ttf",
)

# Class name -> the glyphs drawn for it. The order is the order of classes.txt.
CLASS_GLYPHS: dict[str, str] = {
    "dog": "🐕🐶🐩",
    "cat": "🐈🐱",
    "horse": "🐎🐴",
    "cow": "🐄🐮",
    "sheep": "🐑🐏",
    "pig": "🐖🐷",
    "elephant": "🐘",
    "giraffe": "🦒",
    "zebra": "🦓",
    "bear": "🐻",
    "rabbit": "🐇🐰",
    "monkey": "🐒🐵",
    "chicken": "🐓🐔",
    "penguin": "🐧",
    "owl": "🦉",
    "turtle": "🐢",
    "fish": "🐟🐠",
    "whale": "🐳🐋",
    "octopus": "🐙",
    "butterfly": "🦋",
    "bee": "🐝",
    "car": "🚗🚙",
    "bus": "🚌🚍",
    "truck": "🚚🚛",
    "bicycle": "🚲",
    "train": "🚂🚆",
    "helicopter": "🚁",
    "sailboat": "⛵",
    "rocket": "🚀",
    "tractor": "🚜",
    "apple": "🍎🍏",
    "banana": "🍌",
    "orange": "🍊",
    "grapes": "🍇",
    "strawberry": "🍓",
    "watermelon": "🍉",
    "pineapple": "🍍",
    "carrot": "🥕",
    "mushroom": "🍄",
    "pizza": "🍕",
    "hamburger": "🍔",
    "hot dog": "🌭",
    "ice cream": "🍦🍨",
    "cake": "🎂🍰",
    "wine glass": "🍷",
    "tree": "🌳🌲",
    "cactus": "🌵",
    "sunflower": "🌻",
    "rose": "🌹",
    "house": "🏠🏡",
    "chair": "🪑",
    "television": "📺",
    "laptop": "💻",
    "camera": "📷📸",
    "guitar": "🎸",
    "drum": "🥁",
    "umbrella": "🌂☔",
    "scissors": "✂",
    "key": "🔑",
    "soccer ball": "⚽",
    "basketball": "🏀",
    "teddy bear": "🧸",
    "balloon": "🎈",
    "traffic light": "🚦🚥",
}

CLASS_NAMES: tuple[str, ...] = tuple(CLASS_GLYPHS)


def find_font(font: str | None = None) -> Path:
    """Returns the path of Noto Color Emoji.

    Args:
        font: A path to try alone; the usual places are tried when it is None.

    Raises:
        FileNotFoundError: The font is not there; the message says how to get it.
    """
    for place in (font,) if font else FONT_PLACES:
        path = Path(place).expanduser()
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"no Noto Color Emoji font at {font or ', '.join(FONT_PLACES)}: "
        "install fonts-noto-color-emoji or give --font"
    )


def add_font_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--font` to a parser."""
    parser.add_argument("--font", help="path of NotoColorEmoji.ttf (default: the usual places)")


def render_glyph(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """Draws one glyph on transparent ground, cut to what is opaque, centred on a square. Returns RGBA."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((8, 8), character, font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None:
        raise ValueError(f"the font draws nothing for {character!r}")
    glyph = canvas.crop(box)
    side = max(glyph.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return square


def load_glyphs(font: str | None = None) -> list[tuple[int, Image.Image]]:
    """Renders every glyph of every class.

    Args:
        font: Path of the font, or None for the usual places.

    Returns:
        Pairs of class index and square RGBA glyph, classes in order.
    """
    face = ImageFont.truetype(str(find_font(font)), BITMAP_SIZE)
    return [
        (index, render_glyph(face, character))
        for index, characters in enumerate(CLASS_GLYPHS.values())
        for character in characters
    ]
