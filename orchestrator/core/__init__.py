"""Decides, with values and no input or output: states, plans, verdicts, recovery, errors."""
