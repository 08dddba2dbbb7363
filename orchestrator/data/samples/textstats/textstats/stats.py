"""Describes numbers."""


def mean(numbers):
    """The arithmetic mean; 0 for no numbers."""
    return sum(numbers) / len(numbers) if numbers else 0


def median(numbers):
    """The middle number, or the mean of the two middle ones; 0 for no numbers."""
    ordered = sorted(numbers)
    if not ordered:
        return 0
    return ordered[len(ordered) // 2]
