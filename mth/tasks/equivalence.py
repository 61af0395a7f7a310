r"""Are two boxed answers the same? Reads their text (`answers`), then asks math-verify, and rejects what that library accepts wrongly.

Imports sympy, so only the worker process imports it. It has no time limit of its own.
"""

from typing import Any

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr, Float

from mth.tasks import answers

# Units are taken off by `answers.unit`: the library also takes the last letter of `2t` for a unit.
LATEX = LatexExtractionConfig(
    try_extract_without_anchor=False,
    boxed_match_priority=0,
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last", equations=False
    ),
)
ROUNDED, EXACT = 1e-4, 1e-12  # largest relative difference of two equal numbers, with and without a decimal in them


def same(boxed: str, gold: str) -> bool:
    """True if a boxed answer is equivalent to the gold answer. An empty one never is."""
    given, wanted = answers.clean(boxed), answers.clean(gold)
    if not given or not wanted:
        return False
    if given == wanted:
        return True
    words = answers.word(given), answers.word(wanted)
    if None not in words:
        return words[0] == words[1]
    (given, given_percent), (wanted, wanted_percent) = answers.percent(given), answers.percent(wanted)
    if given_percent != wanted_percent and same_value(
        f"{given}/100" if given_percent else given, f"{wanted}/100" if wanted_percent else wanted
    ):
        return True
    return same_value(given, wanted)


def same_value(given: str, wanted: str) -> bool:
    """`same`, for texts that `answers.clean` made and that have no percent sign."""
    gold_sides = [side for element in answers.elements(wanted) for side in answers.sides(element)]
    if len(answers.sides(wanted)) == 1:
        reduced = [answers.value(element) for element in answers.elements(given)]
        claims = [(number, last) for last, numbers in reduced for number in numbers]
        if not all(same_value(number, last) for number, last in claims):
            return False
        given = ", ".join(last for last, _ in reduced)
    elif not all(any(same_value(number, side) for side in gold_sides) for number in chained_numbers(given)):
        return False
    verdict = same_base(given, wanted)
    if verdict is not None:
        return verdict
    has_letters = any(letter.isalpha() for letter in wanted)
    left = [answers.unit(element, letters=not has_letters) for element in answers.elements(given)]
    right = [answers.unit(element, letters=False) for element in answers.elements(wanted)]
    if len(left) == len(right) and any(a and b and a != b for (_, a), (_, b) in zip(left, right, strict=True)):
        return False
    return library(", ".join(text for text, _ in left), ", ".join(text for text, _ in right))


def chained_numbers(text: str) -> list[str]:
    """The numbers in chains of more than two sides, such as 7 in `7 = y = 2x`."""
    chains = [answers.sides(element) for element in answers.elements(text)]
    return [side for chain in chains if len(chain) > 2 for side in chain if not answers.names_something(side)]


def same_base(given: str, wanted: str) -> bool | None:
    """Compares numbers with a base as a subscript. An answer without one is read in the gold's base. None if there is no base."""
    left, right = answers.based(given), answers.based(wanted)
    if left is None and right is None:
        return None
    if right is None:
        assert left is not None
        return str(number(*left)) == wanted
    return given.upper() == right[0] if left is None else left == right


def number(digits: str, base: int) -> int | None:
    """The value of digits in a base, or None if they are none of its digits."""
    try:
        return int(digits, base)
    except ValueError:
        return None


def library(given: str, wanted: str) -> bool:
    """math-verify's judgement of two LaTeX texts, unless their brackets or their values say otherwise."""
    outer = given[:2] == r"\{", wanted[:2] == r"\{"
    if outer[0] != outer[1] and (wanted if outer[0] else given)[:1] in "([":  # a set is no pair and no interval
        return False
    golds, replies = (parse(f"\\boxed{{{text}}}", [LATEX], fallback_mode="no_fallback", parsing_timeout=None) for text in (wanted, given))
    if not golds or not replies:
        return False
    return bool(verify(golds[0], replies[0], allow_set_relation_comp=True, timeout_seconds=None)) and not differ(golds[0], replies[0])


def differ(left: Any, right: Any) -> bool:
    """True if both are real constants with clearly different values. The library compares the difference to zero: 1/2004! is 1/2006!."""
    if not isinstance(left, Expr) or not isinstance(right, Expr) or left.free_symbols or right.free_symbols:
        return False
    a, b = left.evalf(30), right.evalf(30)
    if not (a.is_Float and b.is_Float) or min(a._prec, b._prec) < 50:  # few significant digits: a sum that cancels
        return False
    tolerance = ROUNDED if left.has(Float) or right.has(Float) else EXACT
    return bool(abs(a - b) > tolerance * max(abs(a), abs(b)))
