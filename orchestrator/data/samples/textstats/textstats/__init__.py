"""Counts words and describes their lengths."""

from textstats.report import most_common, summary
from textstats.tokens import words

__all__ = ["most_common", "summary", "words"]
