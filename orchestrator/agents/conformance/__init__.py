"""What every kind of external agent must show before a task is given to it: scenarios with the real program,
in the real sandbox, against a model that plays a script."""
