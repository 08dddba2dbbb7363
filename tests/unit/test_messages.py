from __future__ import annotations

import pytest

from orchestrator.core.errors import Denied
from orchestrator.queues.messages import Reference, digest, opened, sealed

SECRET = b"of the test"
PLAIN = Reference("kind", "tenant", "task")
BODY = '{"request": {"description": "This"}, "previous": null}'
TRAVELLING = Reference("kind", "tenant", "task", digest=digest(BODY))


def test_a_body_is_opened_with_the_message_that_it_was_sealed_with() -> None:
    assert opened("kind", sealed(TRAVELLING, SECRET), SECRET, BODY) == TRAVELLING
    assert opened("kind", sealed(TRAVELLING, SECRET), SECRET) == TRAVELLING, "left out once there is a row"
    assert opened("kind", sealed(PLAIN, SECRET), SECRET) == PLAIN
    assert "digest" not in sealed(PLAIN, SECRET), "stored signatures of earlier versions stay valid"


@pytest.mark.parametrize("body", [BODY.replace("This", "That"), "", 7, {"description": "This"}])
def test_another_body_is_forged(body: object) -> None:
    with pytest.raises(Denied):
        opened("kind", sealed(TRAVELLING, SECRET), SECRET, body)


def test_a_body_can_not_be_added_to_a_message_that_had_none() -> None:
    with pytest.raises(Denied):
        opened("kind", sealed(PLAIN, SECRET), SECRET, BODY)
    with pytest.raises(Denied):
        opened("kind", {**sealed(PLAIN, SECRET), "digest": digest(BODY)}, SECRET, BODY)
