"""The REST door: reads requests, asks commands and queries, writes answers. It decides nothing."""
