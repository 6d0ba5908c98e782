"""The views of an echocardiogram, as people write them and as tables here hold them.

Left-ventricular volumes by discs are made for the apical two- and four-chamber views, A2C and A4C (Lang et al.,
ASE/EACVI 2015); clips of these two make a biplane volume.
"""

from __future__ import annotations

import re

VOLUME_VIEWS = ("A2C", "A4C")

_CHAMBERS = {"2": "2", "two": "2", "3": "3", "three": "3", "4": "4", "four": "4", "5": "5", "five": "5"}
_CHAMBER = r"c|ch|cv|chamber|chambers|chambered"
# In a table's column, where nothing but a view can stand: A2C, A2, AP2, AP2C, 2CH, apical 2-chamber, two-chamber view.
_WRITTEN = re.compile(
    rf"(?P<apical>a|ap|apical)?(?P<number>{'|'.join(_CHAMBERS)})(?P<chamber>{_CHAMBER})?(?:view)?(?:apical)?"
)
_LONG_AXIS = ("aplax", "alax", "apicallongaxis", "apicallax")
_WORDS = {
    "plax": "PLAX", "parasternallongaxis": "PLAX", "psax": "PSAX", "parasternalshortaxis": "PSAX", "sax": "SAX",
    "shortaxis": "SAX", "subcostal": "subcostal", "suprasternal": "suprasternal",
} | dict.fromkeys(_LONG_AXIS, "A3C")  # fmt: skip
_KNOWN = {*(f"A{number}C" for number in "2345"), *_WORDS.values()}
# In a file's name, among other words: A2C, A2CH, AP2, AP2C, AP2CH, 2C, 2CH; never A2, as subjects are called.
_IN_A_NAME = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"AP([2-5])(?:CH?)?|A([2-5])CH?|([24])CH?|([35])CH|"
    r"(?:APICAL[ -]?)?(2|3|4|5|TWO|THREE|FOUR|FIVE)[ -]?CHAMBER|"
    r"(APLAX|ALAX|PLAX|PSAX|SUBCOSTAL|SUPRASTERNAL)"
    r")(?![A-Za-z0-9])",
    re.IGNORECASE,
)


def standard_view(text: str) -> str:
    """A view as tables here hold it: "A2C" of 2CH, AP2 or "apical two-chamber"; a word that is not known as it is.

    Example:
        >>> [standard_view(text) for text in ("Apical 2-Chamber", "4ch", "a4c", "plax", "my view", "")]
        ['A2C', 'A4C', 'A4C', 'PLAX', 'my view', '']
    """
    letters = re.sub(r"[\s_.()/-]+", "", text).casefold()
    match = _WRITTEN.fullmatch(letters)
    if match and (match["apical"] or match["chamber"]):
        return f"A{_CHAMBERS[match['number']]}C"
    return _WORDS.get(letters.removesuffix("view"), text)


def is_known(view: str) -> bool:
    """Whether a view of `standard_view` is one, and no other word."""
    return view in _KNOWN


def view_in(name: str) -> re.Match[str] | None:
    """Where a file's name says the view, the last time it does; None where it does not. `standard_view` reads it."""
    return max(_IN_A_NAME.finditer(name.replace("_", " ")), key=lambda match: match.start(), default=None)
