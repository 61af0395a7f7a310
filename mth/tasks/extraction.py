"""Finds the boxed answer in a text."""

import re

BOXED, FBOX = "boxed", "fbox"


def last_boxed(text: str, commands: tuple[str, ...] = (BOXED,)) -> str | None:
    r"""Content of the last `\boxed{...}` whose braces balance; white space may stand before the brace, escaped braces do not count.

    Only where a text has no such box, the word behind a last `\boxed 2` without braces. None if there is neither.
    commands: names that draw a box. Replies must use `\boxed`, as in the paper's environments; solutions of MATH also have `\fbox`.
    """
    names = "|".join(commands)
    closing = closing_braces(text)
    for opening in reversed(list(re.finditer(rf"\\(?:{names})\s*\{{", text))):
        end = closing.get(opening.end() - 1)
        if end is not None:
            return text[opening.end() : end]
    bare = list(re.finditer(rf"\\(?:{names})[ \t]+([^\s{{]\S*)", text))
    return bare[-1][1].rstrip("$.") if bare else None


def closing_braces(text: str) -> dict[int, int]:
    """Position of each opening brace that is closed -> that of its closing one. A backslash escapes the character behind it."""
    closing: dict[int, int] = {}
    still_open: list[int] = []
    for token in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if token[0] == "{":
            still_open.append(token.start())
        elif token[0] == "}" and still_open:
            closing[still_open.pop()] = token.start()
    return closing
