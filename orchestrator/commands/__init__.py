"""Write, by transitions alone; the caller owns the transaction and publishes what a command returns."""
