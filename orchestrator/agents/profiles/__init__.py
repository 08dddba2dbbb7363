"""The agents that speak the Agent Client Protocol, one file each: what only it does differently."""
