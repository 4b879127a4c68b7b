"""Words of an English caption, for CIDEr-D: much as the Penn Treebank has them, without Java.

Published CIDEr numbers are of captions split by Stanford's PTBTokenizer, lower-cased, without punctuation. This does
the same with a few rules: contractions are split ("don't" is "do n't", "dog's" is "dog 's", "cannot" is "can not"),
hyphens and apostrophes inside a word stay, punctuation goes. What differs: Stanford keeps the full stop of the
abbreviations it knows ("mr.", "u.s."), here only single letters with full stops ("u.s.") keep theirs, and it writes
fractions, currencies and non-ASCII quotes in ways of its own. Captions of MS-COCO hold few of these.
"""

from __future__ import annotations

import re

__all__ = ["words"]

INITIALS = r"(?:[a-z]\.){2,}"
NUMBER = r"\d+(?:[.,:/]\d+)*"
WORD = r"[^\W_]+(?:[-'&/][^\W_]+)*"
TOKEN = re.compile(rf"{INITIALS}|{NUMBER}(?![-'&/]?[^\W_])|{WORD}")
SPLIT = re.compile(r"(?<=\w)(?=n't$|'(?:s|re|ve|ll|d|m)$)")
TOGETHER = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "wanna": ("wan", "na"), "gotta": ("got", "ta")}


def words(text: str) -> list[str]:
    """The lower-case words of a text.

    >>> words("A man's dog can't reach the half-eaten pizza; 3.5 inches!")
    ['a', 'man', "'s", 'dog', 'ca', "n't", 'reach', 'the', 'half-eaten', 'pizza', '3.5', 'inches']
    """
    found = TOKEN.findall(text.lower().replace("\u2019", "'"))
    return [piece for token in found for piece in TOGETHER.get(token) or SPLIT.split(token)]
