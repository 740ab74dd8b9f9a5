"""Captions are counted in tokens as the tokenizer counts them."""

from __future__ import annotations

import open_clip

from workflows.data.tokens import TokenCounts

TEXTS = ("a seven", "ein ziemlich langer Satz mit vielen Wörtern darin", "七", "word " * 300)


def counted(**texts: int) -> TokenCounts:
    counts = TokenCounts()
    for text, times in texts.items():
        counts.add([text.replace("_", " ")], times)
    return counts


def test_lengths_are_those_of_the_tokenizer() -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=400)
    for text in TEXTS:
        counts = TokenCounts()
        counts.add([text])
        assert counts.longest == int((tokenizer([text]) > 0).sum())
        assert (counts.over(counts.longest), counts.over(counts.longest - 1)) == (0, 1)


def test_99_of_100_captions_fit() -> None:
    words = {"_".join(["word"] * 30): 99, "_".join(["word"] * 40): 1}
    assert counted(**words).fitting == 32
    assert counted(**words, **{"_".join(["word"] * 41): 1}).fitting == 42, "now one in a hundred would be cut twice"


def test_the_length_has_bounds() -> None:
    assert counted(a=7).fitting == 16
    assert counted(**{"word_" * 300: 3}).fitting == 77
    assert counted(**{"word_" * 300: 3}).over(77) == 3
    assert TokenCounts().fitting == 16
    many = counted(**{"word_" * 3000: 2})
    assert (many.longest, many.over(1024)) == (1024, 2)
