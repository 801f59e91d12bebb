"""Odd images and odd texts: what two implementations of one processor differ on, if they differ at all.

Both are made here, the same each time, so that a folder is tried before anything long begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from PIL import Image

_SIZES = ((61, 97), (97, 61), (150, 40), (7, 5), (33, 32))
_PIECES = (
    "a photo of a cat",
    "A Photo Of A DOG",
    "it's the dog's; isn't it? I'll, we've, they'd",
    "tab\tand\nnew line\r\nand \x0b more",
    "  many   spaces  ",
    "naïve café, Äpfel, ÑANDÚ",
    "cafe\u0301 A\u0308pfel N\u0303ANDU\u0301",
    "straße STRASSE ﬁne ﬀ",
    "İstanbul ıI Diyarbakır",
    "ΟΔΥΣΣΕΥΣ ὈΔΥΣΣΕΎΣ",
    "Привет, МИР",
    "红色的方块 和 蓝色的圆",
    "東京タワー ｶﾅ ヴ",
    "한국어 텍스트",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "😀👍🏽 👨‍👩‍👧‍👦 🇩🇪 ❤️",
    "https://example.org/a_b?c=d&e=%20#f",
    "someone@example.org",
    "1,234.56 -7 +8 0x1F 2024-02-30",
    "½ ² Ⅷ ① ℃ №",
    "snake_case camelCase kebab-case",
    "!!! ... ??? --- ___ ***",
    "“quoted” ‘words’ «here» – — …",
    "(brackets) [and] {braces} <tags> \\ / |",
    "$5 €6 £7 100% #1 @home ~ ^ `",
    "&amp; &lt;b&gt; &quot;entities&quot; &amp;amp;",
    "<|startoftext|> a <|endoftext|> b",
    "a <s> b </s> c",
    "[CLS] a [SEP] b [PAD] [MASK] [UNK]",
    "a <pad> b <eos> c <bos> d <unk> e <mask>",
    "</s>",
    "<|endoftext|>",
    "▁low▁line",
    "zero\u200bwidth\u200d joined\ufeff",
    "no\u00a0break \u2003em \u3000wide \u2028line",
    "nul\x00bell\x07escape\x1b[31m \x1c \x7f \x85",
    "ＦＵＬＬ　ｗｉｄｔｈ",
    "𝕊𝕔𝕣𝕚𝕡𝕥 𐍈 𒀀",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘",
    "\ue000 \ufffd \u0378",
)


def odd_images(side: int) -> Iterator[Image.Image]:
    """RGB images for a model of this input side, in pixels: portrait, landscape, tiny, exact, large, and grey."""
    random = np.random.default_rng(0)
    for width, height in (*_SIZES, (side, side), (2 * side + 7, 3 * side + 1)):
        coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
        noise = random.integers(-40, 41, (height, width, 3))
        image = Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))
        yield image
    yield image.convert("L").convert("RGB")


def odd_texts() -> list[str]:
    """About 200 texts: scripts, accents, emoji, white space, control characters, special tokens; up to 500 words."""
    neighbours = [f"{one}{other}" for one, other in pairwise(_PIECES)]
    texts = ["", " ", "\n", "a", "a" * 300, "word " * 500, "The Word, " * 250, *_PIECES, *neighbours]
    texts += [f"a photo of {piece}." for piece in _PIECES]
    texts += [piece.upper() for piece in _PIECES]
    texts += [" ".join([piece] * 12) for piece in _PIECES]
    return list(dict.fromkeys(texts))
