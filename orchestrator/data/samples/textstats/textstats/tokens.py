"""Takes a text apart into words."""

import re

WORD = re.compile(r"[a-z0-9]+")


def words(text):
    """The words of a text, in order, in lower case; an apostrophe inside a word belongs to it."""
    return WORD.findall(text.lower())
