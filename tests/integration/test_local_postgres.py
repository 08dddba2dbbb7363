from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from orchestrator.local import ports, postgres, postgres_programs, processes
from orchestrator.local.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.local.postgres import Cluster
    from tests.servers import PostgresServer

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="is about what root does")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "postgres"
    postgres.remove(tmp_path / "postgres")


@contextmanager
def _served(folder: Path, cluster: Cluster) -> Iterator[tuple[Supervisor, int]]:
    supervisor = Supervisor(folder)
    port = ports.choose(0)
    try:
        supervisor.launch(cluster.service(port))
        supervisor.await_ready("postgres")
        yield supervisor, port
    finally:
        supervisor.stop()


def _ask(dsn: str, question: str) -> object:
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(question)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None


def test_data_survives_an_orderly_stop_and_a_kill(home: Path, tmp_path: Path) -> None:
    cluster = postgres.prepare(home, "secret", say=print)
    with _served(tmp_path, cluster) as (_, port):
        _ask(cluster.dsn(port, database="postgres"), "CREATE TABLE kept AS SELECT 41 AS value")
    cluster = postgres.prepare(home, "secret", say=print)
    with _served(tmp_path, cluster) as (_, port):
        assert _ask(cluster.dsn(port, database="postgres"), "SHOW fsync") == "on"
        assert _ask(cluster.dsn(port, database="postgres"), "SHOW synchronous_commit") == "on"
        assert _ask(cluster.dsn(port, database="postgres"), "SELECT value FROM kept") == 41
        _ask(cluster.dsn(port, database="postgres"), "UPDATE kept SET value = 42")
        lock = cluster.data / "postmaster.pid"
        os.kill(int(lock.read_text().splitlines()[0]), signal.SIGKILL)
    cluster = postgres.prepare(home, "secret", say=print)
    with _served(tmp_path, cluster) as (_, port):
        assert _ask(cluster.dsn(port, database="postgres"), "SELECT value FROM kept") == 42


def test_a_lock_file_that_names_an_unrelated_process_is_healed(home: Path, tmp_path: Path) -> None:
    cluster = postgres.prepare(home, "secret", say=print)
    unrelated = subprocess.Popen(["sleep", "60"], **_as_owner(cluster))
    try:
        lines = [str(unrelated.pid), str(cluster.data), "1", "1", "", "", ""]
        (cluster.data / "postmaster.pid").write_text("\n".join(lines))
        cluster = postgres.prepare(home, "secret", say=print)
        with _served(tmp_path, cluster) as (_, port):
            assert _ask(cluster.dsn(port, database="postgres"), "SELECT 1") == 1
        assert unrelated.poll() is None
    finally:
        unrelated.kill()
        unrelated.wait()


def test_a_server_that_nobody_supervises_any_more_is_ended_first(home: Path, tmp_path: Path) -> None:
    cluster = postgres.prepare(home, "secret", say=print)
    service = cluster.service(ports.choose(0))
    with (tmp_path / "log").open("wb") as log:
        left = subprocess.Popen(service.argv, cwd=cluster.data, stderr=log, **_as_owner(cluster))
    identity = processes.identify(left.pid)
    lock = cluster.data / "postmaster.pid"
    while not (lock.exists() and lock.read_text().count("\n") > 6):
        assert left.poll() is None
    postgres.prepare(home, "secret", say=print)
    assert identity is not None
    assert not processes.alive(identity)
    assert left.wait() == 0


def test_a_killed_initdb_leaves_nothing_that_looks_like_data(home: Path, tmp_path: Path) -> None:
    cluster = postgres.prepare(home, "secret", say=print)
    partial = cluster.data.with_name("data.partial")
    cluster.data.rename(partial)
    (partial / "global" / "pg_control").unlink()
    again = postgres.prepare(home, "secret", say=print)
    with _served(tmp_path, again) as (_, port):
        assert _ask(again.dsn(port, database="postgres"), "SELECT 1") == 1
    assert not partial.exists()


def test_it_wants_the_password_and_opens_no_socket_file(postgres_server: PostgresServer) -> None:
    stranger = replace(postgres_server.cluster, password="guess")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(stranger.dsn(postgres_server.port, database="postgres"))
    dsn = postgres_server.cluster.dsn(postgres_server.port, database="postgres")
    assert _ask(dsn, "SHOW unix_socket_directories") == ""
    assert _ask(dsn, "SELECT 'Ä' ILIKE 'ä'") is True


def test_a_fresh_database_is_a_copy_of_its_template(postgres_server: PostgresServer) -> None:
    def fill(url: str) -> None:
        _ask(url.replace("+psycopg2", ""), "CREATE TABLE filled AS SELECT 7 AS value")

    name = postgres_server.template("filled_once", fill)
    assert postgres_server.template("filled_once", fill) == name
    one, other = postgres_server.fresh(name), postgres_server.fresh(name)
    _ask(one.replace("+psycopg2", ""), "UPDATE filled SET value = 8")
    assert _ask(other.replace("+psycopg2", ""), "SELECT value FROM filled") == 7
    postgres_server.drop(one)
    postgres_server.drop(other)


@needs_root
def test_root_serves_as_another_user_and_no_mode_changes(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    parents = [tmp_path, *tmp_path.parents]
    before = [folder.stat().st_mode for folder in parents]
    home = tmp_path / "postgres"
    cluster = postgres.prepare(home, "secret", say=print)
    with _served(tmp_path, cluster) as (supervisor, port):
        pid = int((cluster.data / "postmaster.pid").read_text().splitlines()[0])
        assert cluster.account is not None
        assert Path(f"/proc/{pid}").stat().st_uid == cluster.account.uid != 0
        assert _ask(cluster.dsn(port, database="postgres"), "SELECT 1") == 1
        assert supervisor.ports["postgres"] == port
    assert [folder.stat().st_mode for folder in parents] == before
    assert cluster.data.is_relative_to(postgres_programs.ROOT_HOME)
    postgres.remove(home)
    assert not cluster.data.exists()


@needs_root
def test_programs_that_the_user_can_not_reach_are_copied_once(tmp_path: Path) -> None:
    runs_as = postgres_programs.account(print)
    assert runs_as is not None
    real = postgres_programs.installed()
    locked = tmp_path / "locked"
    package = real.folder.partition("/")[0]
    for part in (real.folder, f"{package}.libs"):
        shutil.copytree(real.root / part, locked / part, symlinks=True)
    locked.chmod(0o700)
    hidden = replace(real, root=locked, wheel_version=f"test-{secrets.token_hex(4)}")
    said: list[str] = []
    copy = postgres_programs.reachable(hidden, runs_as, said.append)
    try:
        assert copy.root.parent == postgres_programs.ROOT_HOME
        assert len(said) == 1
        assert postgres_programs.reachable(hidden, runs_as, said.append) == copy
        assert len(said) == 1
        assert stat.S_IMODE(locked.stat().st_mode) == 0o700
        version = subprocess.run(
            [copy.bin / "initdb", "--version"],
            user=runs_as.uid,
            group=runs_as.gid,
            extra_groups=[],
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
        )
        assert f" {real.major}." in version.stdout
    finally:
        shutil.rmtree(copy.root)


@needs_root
def test_an_ordinary_user_serves_it_too() -> None:
    """As a process of a user without any right, in a folder of that user's."""
    python = _python_for_all()
    if python is None:
        pytest.skip("no interpreter here that an ordinary user can run")
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(Path(__file__).parents[2] / "orchestrator", folder / "code" / "orchestrator")
    program = (
        "import sys; from pathlib import Path\n"
        "from orchestrator.local import ports, postgres\n"
        "from orchestrator.local.supervisor import Supervisor\n"
        "folder = Path(sys.argv[1]); port = ports.choose(0)\n"
        "cluster = postgres.prepare(folder / 'postgres', 'secret', say=print)\n"
        "supervisor = Supervisor(folder)\n"
        "supervisor.launch(cluster.service(port)); supervisor.await_ready('postgres')\n"
        "print(postgres.server_version(cluster, port), cluster.account, cluster.data)\n"
        "supervisor.stop()\n"
    )
    data = folder / "data"
    data.mkdir()
    for path in (folder, data):
        os.chown(path, 65534, 65534)
    try:
        done = subprocess.run(
            [python, "-c", program, str(data)],
            user=65534,
            group=65534,
            extra_groups=[],
            cwd="/",
            env={"PATH": os.defpath, "PYTHONPATH": f"{folder / 'code'}:{postgres_programs.installed().root}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[1:] == ["None", str(data / "postgres" / "data")]
    finally:
        shutil.rmtree(folder)


def _as_owner(cluster: Cluster) -> dict[str, Any]:
    if cluster.account is None:
        return {}
    return {"user": cluster.account.uid, "group": cluster.account.gid, "extra_groups": []}


def _python_for_all() -> str | None:
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        try:
            subprocess.run(
                [candidate, "-c", ""],
                user=65534,
                group=65534,
                extra_groups=[],
                cwd="/",
                check=True,
                env={"PYTHONPATH": str(postgres_programs.installed().root)},
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    return None
