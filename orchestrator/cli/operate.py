"""What operators do to an installation as a whole: its messages, its old rows, its backups."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from orchestrator.cli import session
from orchestrator.cli.spans import seconds
from orchestrator.cli.system import Json
from orchestrator.cli.terminal import clean, out, print_json, say
from orchestrator.core.errors import OrchestratorError, Refused, Unavailable

queue = typer.Typer(no_args_is_help=True)

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]
_OTHERS: Final = ("ORCHESTRATOR_DATABASE_URL", "DATABASE_URL")


def joined() -> None:
    """Takes the settings of the stack that runs on this machine, unless the environment names a database."""
    from orchestrator.local.joining import environment

    if not any(os.environ.get(name) for name in _OTHERS):
        for name, value in environment(session.data_dir()).items():
            os.environ.setdefault(name, value)


@queue.command()
def purge(
    lane: Annotated[str, typer.Argument(help="critical, high, medium, low or system.")],
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Throws a queue's messages away. Nothing is lost: what is due is in the database and is sent again."""
    from orchestrator.bootstrap import load
    from orchestrator.queues.topology import lanes_of

    lanes = lanes_of(lane)
    joined()
    _confirm(
        f"Throw away the messages of {lane}? Their steps start later, when the sweep sends them again.", yes
    )
    wiring = load("orchestrator:purge")
    try:
        with wiring.app.connection_for_write() as connection:
            channel: Any = connection.default_channel
            count = sum(channel.queue_purge(name.value) for name in wiring.topology.consumed(lanes))
    except Exception as error:  # noqa: BLE001 - each broker's library has errors of its own
        raise Unavailable(
            "broker-unreachable", f"The broker can't be reached ({type(error).__name__}).", "orchestrator ps"
        ) from None
    if json:
        print_json({"lane": lane, "messages": count})
    else:
        out(f"{count} messages thrown away")


def retention(
    older_than: Annotated[
        str, typer.Option(help="How long ago a task must have ended, such as 90d.")
    ] = "90d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    json: Json = False,
) -> None:
    """Archives tasks that ended long ago: their events, logs and conversations go, the rest stays."""
    from orchestrator.bootstrap import load
    from orchestrator.commands import retention as keeping

    age = timedelta(seconds=seconds(older_than))
    joined()
    wiring = load("orchestrator:retention")
    if dry_run:
        with wiring.engine.connect() as connection:
            due = keeping.due(connection, wiring.tenant_id, age)
        if json:
            print_json({"dry_run": True, "tasks": due})
        else:
            out(f"{due} tasks would be archived")
        return
    total = 0
    while True:
        with wiring.engine.begin() as connection:
            batch = keeping.archive(connection, wiring.tenant_id, age)
            for key in batch.evidence:
                wiring.artifacts.delete(key)
        total += batch.tasks
        if batch.tasks == 0:
            break
        say(f"{batch.tasks} tasks: {batch.events} events, {batch.logs} logs, {batch.turns} turns deleted")
    with wiring.engine.begin() as connection:
        forgotten = keeping.forget_answers(connection, wiring.tenant_id)
    if json:
        print_json({"dry_run": False, "tasks": total, "idempotency_keys": forgotten})
    else:
        out(f"{total} tasks archived, {forgotten} idempotency keys forgotten")


def backup(
    file: Annotated[Path, typer.Argument(help="Where to write the dump.")], json: Json = False
) -> None:
    """Writes all of the database to a file, as of one moment; nothing need be stopped.

    Not in it: stored files (the artifact store) and credentials.toml.
    """
    joined()
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        _postgres("pg_dump", "--format=custom", f"--file={partial}")
        partial.replace(file)
    except OSError as error:
        raise Refused(
            "file-unwritable", f"Can't write {file} ({error.strerror}).", "Name another file."
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    size = file.stat().st_size
    if json:
        print_json({"file": str(file), "bytes": size})
    else:
        out(f"{file}: {size / 1e6:.1f} MB")


def restore(
    file: Annotated[Path, typer.Argument(help="What `db backup` wrote.")],
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Puts a backup in the place of all that the database holds now. Stop workers, beat and API first."""
    if not file.is_file():
        raise Refused(
            "file-unreadable", f"There is no file {file}.", "Name one that `orchestrator db backup` wrote."
        )
    joined()
    _confirm(f"Replace everything in the database by {file}?", yes)
    _postgres(
        *("pg_restore", "--clean", "--if-exists", "--no-owner", "--single-transaction", "--exit-on-error"),
        str(file),
    )
    if json:
        print_json({"file": str(file), "restored": True})
    else:
        out("restored")
    say("Bring the schema up to date if the backup is older than this version: orchestrator db upgrade")


def _postgres(program: str, *options: str) -> None:
    """Runs one of Postgres' own programs on our database; the password goes by the environment."""
    from orchestrator.bootstrap import load

    parsed = load(f"orchestrator:{program}").engine.url
    where = parsed.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    environment = {**os.environ, "PGPASSWORD": str(parsed.password or ""), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [_program(program), f"--dbname={where}", "--no-password", *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise Unavailable(
            "database-program-failed",
            f"{program} failed: {clean(said[0])[:300]}",
            "Nothing was changed: see that the database runs, and that nobody else uses it.",
        )


def _program(name: str) -> str:
    """The wheel's, which is as new as the embedded server; else one on PATH."""
    from orchestrator.local.postgres_programs import installed

    try:
        return str(installed().bin / name)
    except OrchestratorError:
        found = shutil.which(name)
    if found is None:
        raise Unavailable(
            "no-postgres-programs", f"There is no {name} on PATH.", "Install Postgres' client programs."
        )
    return found


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise Refused("not-confirmed", "This needs a confirmation, and nobody is asked here.", "Add --yes.")
    if not typer.confirm(question):
        raise typer.Abort
