"""Text of others, such as a model's, made safe to look at."""

import unicodedata

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # categories of characters that are not shown, or that a terminal obeys


def visible(text: str) -> str:
    """The text with every character written out that is hidden or obeyed and not shown, but for line breaks: `\\x1b`, `\\u202e`."""
    return "".join(_written(each) if unicodedata.category(each) in HIDDEN and each != "\n" else each for each in text)


def _written(each: str) -> str:
    return each.encode("unicode_escape").decode()
