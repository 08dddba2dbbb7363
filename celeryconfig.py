"""Celery's settings, where people look for them; see `orchestrator/queues/settings.py`.

Not installed: a producer's own `celeryconfig.py` would replace it, and this one would configure theirs.
"""

from orchestrator.queues.settings import *  # noqa: F403 - a module of settings is its names
