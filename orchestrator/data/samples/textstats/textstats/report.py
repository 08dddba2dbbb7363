"""Puts words and numbers together."""

from collections import Counter

from textstats.stats import mean, median
from textstats.tokens import words


def summary(text):
    """How many words there are, and how long they are."""
    lengths = [len(word) for word in words(text)]
    return {"words": len(lengths), "mean": mean(lengths), "median": median(lengths)}


def most_common(text, count):
    """The `count` most common words with their numbers; equally common ones in alphabetical order."""
    found = Counter(words(text)).items()
    return sorted(found, key=lambda pair: (-pair[1], pair[0]))[:count]
