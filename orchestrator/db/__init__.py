"""Remembers: the tables, the transitions (the only writer of state), claims and leases, and what is ready."""
