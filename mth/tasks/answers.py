r"""Reads the text of a boxed answer, before math-verify does: marks, spaces, percent, units, bases and the sides of an equation.

Nothing here needs sympy. `docs/graders.md` lists the decisions.
"""

import re

SYMBOLS = {  # what models write instead of LaTeX
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "°": r"^\circ ", "π": r"\pi ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "\u222a": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ",
    "θ": r"\theta ", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "²": "^{2}", "³": "^{3}", "\u2009": r"\,", "\u202f": r"\,", "\u00a0": " ", "“": '"', "”": '"', "\u2019": "'", "`": "",
    r"\varnothing": r"\emptyset", "∅": r"\emptyset",
}  # fmt: skip
SPACE = r"\\[,;: ]|\\thinspace|\\!|~|\{,\}| "
WRAPPED = re.compile(r"\*\*(.+)\*\*|__(.+)__|\\\((.+)\\\)|\\\[(.+)\\\]|\$+([^$]+)\$+|\{([^{}]*)\}", re.DOTALL)
STYLED = re.compile(r"\\(?:math(?:bf|rm|it|sf)|text(?:bf|it|rm|normal)|bm|boldsymbol|mbox|text)\s*\{([^{}]*)\}")
PERCENT = re.compile(r"\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|percent)\s*\}|\bpercent)$")
POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
UNITS = {
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "m": "m meter metre", "km": "km kilometer kilometre",
    "in": "in inch inche", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile", "g": "g gram", "kg": "kg kilogram", "lb": "lb pound",
    "s": "s sec second", "min": "min minute", "h": "h hr hour", "day": "day", "week": "week", "year": "year yr",
    "dollar": "dollar", "cent": "cent", "degree": "degree deg", "L": "l liter litre", "ml": "ml milliliter millilitre",
}  # fmt: skip
UNIT_OF = {name: unit for unit, names in UNITS.items() for name in names.split()}
GENERIC = ("square", "sq", "cubic", "unit", "units", "inches", "feet")
APPROXIMATES = re.compile(r"\\(?:approx|simeq|cong)(?![a-zA-Z])")
RELATIONS = re.compile(r":?=|\\(?:equiv|to|rightarrow|Rightarrow|implies|in|sim)(?![a-zA-Z])")
FORMULA = re.compile(r"\\(?!(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega|rho|sigma|tau|angle|ell|triangle)(?![a-zA-Z]))[a-zA-Z]+")
BASED = re.compile(r"\(?([0-9A-Fa-f]+)\)?_\{?\s*(?:\\text\s*\{)?\s*(?:base\s*)?([a-z]+|\d+)\s*\}?\s*\}?")
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "twelve": 12, "sixteen": 16}


NUMBER_WORDS = "|".join(POWERS)
REWRITES = (
    (r"\\\(|\\\)|\\\$|(?<!\\)\$|^[£€]", ""),  # marks of math mode and of currency
    (rf"(?<![\d.])\d{{1,3}}(?:(?:{SPACE})\d{{3}})+(?!\d)", lambda found: re.sub(SPACE, "", found[0])),  # 9\,500
    (r"\\!", ""),
    (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\\thinspace(?![a-zA-Z])|\s+", " "),
    (r"(?<![\d.])(\d+) +(\d+) ?/ ?(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),  # 2 1/2
    (r"^([+-]?(?:\d+\.?\d*|\.\d+))[eE]([+-]?\d+)$", r"\1 \\times 10^{\2}"),  # 1e3
    (
        rf"\s*\\text\s*\{{\s*({NUMBER_WORDS})\s*\}}|(?<=\d) ({NUMBER_WORDS})\b",
        lambda found: rf" \times 10^{{{POWERS[found[1] or found[2]]}}}",
    ),
)


def clean(text: str) -> str:
    """The same answer in plain LaTeX: no marks of style around it, no punctuation behind it, digits without separators, no `$`."""
    for symbol, latex in SYMBOLS.items():
        text = text.replace(symbol, latex)
    text = re.sub(r"√\s*(\d+|[a-z]|\([^()]*\))", r"\\sqrt{\1}", text).replace(r"\displaystyle", "").replace(r"\dfrac", r"\frac")
    before = None
    while before != text:
        before = text
        text = re.sub(r"(?<=[^.\\])[.,;:]$|(?<!\\)[\"']$|^[\"']", "", text.strip()).strip()
        whole = WRAPPED.fullmatch(text)
        text = next(part for part in whole.groups() if part is not None) if whole else text
    for pattern, replacement in REWRITES:
        text = re.sub(pattern, replacement, text)
    return text.strip()


def percent(text: str) -> tuple[str, bool]:
    """The text without a percent sign, and whether it had one."""
    bare = PERCENT.sub("", text)
    return bare, bare != text


def elements(text: str) -> list[str]:
    """The parts of a list, split at the commas and semicolons that no bracket encloses."""
    return split(text, re.compile(r";|,(?!\d{3}(?!\d))|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])"))


def sides(text: str) -> list[str]:
    r"""The sides of an equation or a chain of them, also at \equiv, \to, \Rightarrow, \in; `<=` and `\neq` do not split."""
    return split(text, RELATIONS)


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split where no bracket is open; empty parts are left out."""
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        found = separator.match(text, at) if depth == 0 and text[at - 1 : at] not in tuple("<>!") else None
        if found:
            parts.append(text[start:at])
            start = at = found.end()
            continue
        depth += (text[at] in "([{") - (text[at] in ")]}")
        at += 2 if text[at] == "\\" and text[at + 1 : at + 2] not in tuple("{}()[]") and not text[at + 1 : at + 2].isalpha() else 1
    return [part.strip() for part in [*parts, text[start:]] if part.strip()]


def names_something(side: str) -> bool:
    """True if a side of an equation has a variable or a name, so that the other side may be its value."""
    return re.search("[a-zA-Z]", FORMULA.sub("", unit(side, letters=True)[0])) is not None


def value(element: str) -> tuple[str, list[str]]:
    r"""What an element of an answer comes to, and the numbers that it claims to be equal.

    `x = 5` and `5 = x` give ("5", []), `2 + 3 = 5` ("5", ["2 + 3"]), `5` ("5", []). What `\approx` is behind a number only explains it.
    """
    exact, *decimals = split(element, APPROXIMATES) or [element]
    *left, last = [*sides(exact), *decimals] if names_something(exact) and len(sides(exact)) == 1 else sides(exact) or [exact]
    numbers = [side for side in left if not names_something(side)]
    if numbers and re.fullmatch("[a-zA-Z]", last):
        last = numbers.pop()
    return last, numbers


def unit(text: str, letters: bool) -> tuple[str, str]:
    r"""The text without a unit behind a number, and the unit if it is a known one: `10 \text{ cm}^{2}` gives ("10", "cm").

    letters: a single letter without `\text` is a unit too, so `5 m` is 5; else it is a variable.
    """
    text = re.sub(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![a-zA-Z])", "", text).strip()
    power = r"\s*(?:\^\s*\{?\s*-?\d\s*\}?)?"
    found = re.fullmatch(rf"(.*\S)\s*\\(?:text|mathrm|mbox|textrm)\s*\{{([^{{}}]*)\}}{power}", text, re.DOTALL)
    if found is None:
        found = re.fullmatch(rf"(.*[\d)}}\s])((?:[a-zA-Z]+[.\s/]*)+){power}", text, re.DOTALL)
        words = re.findall("[a-zA-Z]+", found[2]) if found else []
        if not any((known_unit(word) or word.lower() in GENERIC) and (letters or len(word) > 1) for word in words):
            return text, ""
    if found is None or not re.search(r"\d", found[1]):  # a name, not a number
        return text, ""
    known = [known_unit(word) for word in re.findall("[a-zA-Z]+", found[2])]
    return found[1].strip(), next((name for name in known if name), "")


def known_unit(word: str) -> str:
    """The short name of a unit, or an empty text."""
    return UNIT_OF.get(word) or UNIT_OF.get(word.lower().removesuffix("s"), "")


def based(text: str) -> tuple[str, int] | None:
    r"""The digits and the base of `1011_2`, `1011_{2}`, `1011_{\text{two}}`; None if the text has none."""
    found = BASED.fullmatch(text)
    if found is None or not (found[2].isdigit() or found[2] in BASES):
        return None
    return found[1].upper(), int(found[2]) if found[2].isdigit() else BASES[found[2]]


def word(text: str) -> str | None:
    r"""A name or a word in lower case, whatever its style: `Evelyn`, `\text{(no)}`. None for a formula, such as `xy`."""
    bare = re.sub(r"[\s().\"']|(?<=[a-zA-Z])-(?=[a-zA-Z])", "", STYLED.sub(r"\1", text))
    if not re.fullmatch("[a-zA-Z]{2,}", bare) or not (STYLED.search(text) or len(bare) > 3 or not bare.islower()):
        return None
    return bare.lower()
