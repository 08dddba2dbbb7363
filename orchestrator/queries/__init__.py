"""Read: one function per screen. Nothing here writes, and what is returned is a frozen value, never a row."""
