"""The gateway: the one process that holds providers' keys, and through which every live model is called."""
