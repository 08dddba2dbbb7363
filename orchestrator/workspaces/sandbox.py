"""Where everything runs that a repository or a model has a say in: bubblewrap, or openly nothing.

In bubblewrap a command sees /usr, the paths that policy names, an empty /tmp, and what it is given to work
on; it has no network, no capability, no other process in sight, and everything that it started dies with it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import monotonic_ns
from typing import IO, Final, Literal

from orchestrator.core.assignment import Stop
from orchestrator.workspaces.cgroup import Group, Groups
from orchestrator.workspaces.commands import Ended, Tail, watch
from orchestrator.workspaces.errors import GitError, SandboxUnavailable
from orchestrator.workspaces.kin import Kindred, end_orphans, threads_of_machine
from orchestrator.workspaces.programs import RUN_MARK, Mount, Program, Running, arguments_file
from orchestrator.workspaces.room import RoomBounds

ISOLATION: Final = (
    "--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session",
    "--cap-drop", "ALL", "--clearenv", "--hostname", "workspace",
)  # fmt: skip
ROOT_LINKS: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
ETC: Final = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "ssl/certs", "ssl/openssl.cnf", "pki",
    "ca-certificates", "localtime", "mime.types", "fonts", "protocols", "services",
)  # fmt: skip
ETC_OURS: Final[Mapping[str, str]] = {
    "passwd": "agent:x:{uid}:{gid}:agent:/tmp/home:/bin/sh\n",
    "group": "agent:x:{gid}:\n",
    "hosts": "127.0.0.1 localhost workspace\n::1 localhost\n",
    "gitconfig": "[user]\nname = agent\nemail = agent@orchestrator.invalid\n[init]\ndefaultBranch = main\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
MARK: Final = "ORCHESTRATOR_COMMAND"
HOME: Final = "/tmp/home"  # noqa: S108  # inside the sandbox's own, empty /tmp

# POSIX sh alone: dash counts processes with -p, bash and busybox with -u; core files never, data rather than
# address space, since node and Go reserve far more of that than they use.
# "$0" and the words up to "--" are the doors of the control group; what follows is the command.
ENTER: Final = """set -e
echo $$ > "$0"
while [ "$1" != -- ]; do echo $$ > "$1"; shift; done
shift
exec "$@"
"""
# Bubblewrap's own two processes keep what they have as standard output as long as they live: so they get the
# program's by another number, which they don't keep, and a program that closes its output is seen to do so.
ASIDE: Final = 'exec {aside}>&1 >/dev/null "$@"'
BACK: Final = ">&{aside} {aside}>&-"
PREAMBLE: Final = """ulimit -c 0
ulimit -t {cpu} 2>/dev/null
ulimit -f {file_blocks} 2>/dev/null
ulimit -n {open_files} 2>/dev/null
ulimit -d {memory_kilobytes} 2>/dev/null || ulimit -v {memory_kilobytes} 2>/dev/null
{processes}
exec "$@" {output}
"""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one command may use with all its processes; without a control group memory is per process."""

    memory_bytes: int = 4 * 1024**3
    processes: int = 512
    file_bytes: int = 2 * 1024**3
    open_files: int = 4096
    temporary_bytes: int = 1024**3
    output_bytes: int = 64 * 1024**2
    """A command that prints more is killed."""
    shown_bytes: int = 1024**2
    """How much of the output is passed on while it runs."""
    kept_bytes: int = 64 * 1024
    """How much of the output's end the result keeps."""
    room: RoomBounds = field(default_factory=RoomBounds)
    """What all commands of an attempt together may leave on the disk."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a sandboxed process ended; `code` is None when we killed it, and `ended` says why."""

    code: int | None
    output: str
    truncated: bool
    ended: Ended


class Sandbox:
    """Starts processes; made once per worker. Only `read_only` and each call's mounts are visible in it.

    Raises `SandboxUnavailable` when `strict` and bubblewrap doesn't work here. `folder` keeps a few files.
    """

    kind: Literal["bubblewrap", "none"]
    warning: str | None
    """What is weaker than intended, for the log at start and for `doctor`."""

    def __init__(
        self,
        folder: Path,
        *,
        path: str,
        read_only: Sequence[Path] = (),
        strict: bool = False,
        bounds: Bounds | None = None,
    ) -> None:
        self.bounds = bounds or Bounds()
        self._host_path = path
        prefixes = [Path(sys.prefix), Path(sys.base_prefix), *read_only]
        self._read_only = [at for at in dict.fromkeys(prefixes) if at.exists() and not _below_usr(at)]
        self._bin = [str(at / "bin") for at in dict.fromkeys(prefixes) if (at / "bin").is_dir()]
        self._etc = folder / "etc"
        self._last_resort = folder / "bin"
        self._write_files()
        self._groups = Groups.find()
        self._isolation: tuple[str, ...] = ISOLATION
        self.kind, self.warning = self._probe()
        if strict and self.kind == "none":
            raise SandboxUnavailable(f"strict mode needs bubblewrap: {self.warning}")
        if self.kind == "none":
            end_orphans(MARK)
        end_orphans(RUN_MARK)

    def finds(self, program: str) -> bool:
        """Whether a command would find that program."""
        return shutil.which(program, path=self._environment(None)["PATH"]) is not None

    def inside(self, mount: Mount) -> str:
        """The path under which a command finds it."""
        return mount.target if self.kind == "bubblewrap" else str(mount.source)

    def run(
        self,
        words: Sequence[str],
        *,
        mounts: Sequence[Mount],
        folder: str,
        environment: Mapping[str, str] | None = None,
        timeout: timedelta,
        on_output: Callable[[str], None],
        stop: Stop,
        shown_bytes: int | None = None,
        takes_too_much: Callable[[], bool] = bool,
    ) -> Ran:
        """For what people and models watch: text in pieces, `shown_bytes` of it (None: as bounded), the end
        of it kept. It is killed once `takes_too_much`, which is asked ten times a second."""
        tail = Tail(self.bounds.kept_bytes, shown_bytes or self.bounds.shown_bytes, on_output)
        code, ended = self._go(
            words,
            mounts=mounts,
            folder=folder,
            environment=environment or {},
            timeout=timeout,
            stdout=subprocess.PIPE,
            stop=stop,
            tail=tail,
            takes_too_much=takes_too_much,
        )
        return Ran(code if ended is Ended.EXIT else None, tail.text, tail.truncated, ended)

    def pipe(
        self,
        words: Sequence[str],
        *,
        mounts: Sequence[Mount],
        folder: str,
        environment: Mapping[str, str],
        stdout: IO[bytes],
        timeout: timedelta,
        stop: Stop | None = None,
        accept: tuple[int, ...] = (0,),
    ) -> str:
        """For git's plumbing: bytes out through a file. What it said on stderr; else `GitError` with that."""
        tail = Tail(4096, 0, lambda _text: None)
        code, ended = self._go(
            words,
            mounts=mounts,
            folder=folder,
            environment=environment,
            timeout=timeout,
            stdout=stdout,
            stop=stop or Stop(),
            tail=tail,
        )
        if ended is not Ended.EXIT:
            raise GitError(f"git in the sandbox was killed: {ended}")
        if code not in accept:
            raise GitError(f"git in the sandbox ended with code {code}: {tail.text.strip()}")
        return tail.text

    def start(self, program: Program) -> Running:
        """Starts what goes on for long and is talked to through pipes; the caller ends it.

        Its environment is nowhere in the words of a process, which every account of the machine can read.
        """
        group = self._group(program.memory_bytes)
        marked = {RUN_MARK: program.mark}
        with contextlib.ExitStack() as files:
            if self.kind == "bubblewrap":
                options = self._options(program.mounts, program.folder, {**program.environment, **marked})
                at = files.enter_context(arguments_file(options)).fileno()
                kept: tuple[int, ...] = (at,)
                aside = 8 if at == 9 else 9  # noqa: PLR2004 - a shell names one digit
                limits = self._preamble(program.wall_time, program.memory_bytes, BACK.format(aside=aside))
                outer = ["/bin/sh", "-c", ASIDE.format(aside=aside), "sh", "bwrap", "--args", str(at), "--"]
                command = [*outer, "/bin/sh", "-c", limits, "sh", *program.words]
                environment = {"PATH": self._host_path, **marked}
            else:
                limits = self._preamble(program.wall_time, program.memory_bytes)
                command, kept = ["/bin/sh", "-c", limits, "sh", *program.words], ()
                environment = {**self._environment(program.environment), **marked}
            try:
                process = subprocess.Popen(
                    command if group is None else ["/bin/sh", "-c", ENTER, *group.doors, "--", *command],
                    env=environment,
                    cwd="/" if self.kind == "bubblewrap" else program.folder,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    start_new_session=True,
                    pass_fds=kept,
                )
            except OSError as error:
                if group is not None:
                    group.remove()
                raise GitError(f"{program.words[0]} could not be started: {error.strerror}") from error
        mark = f"{RUN_MARK}={program.mark}"
        kin = Kindred(
            process.pid,
            most=self.bounds.processes,
            mark=None if self.kind == "bubblewrap" else mark,
            group=group,
        )
        return Running(process, kin, mark, group)

    def _go(
        self,
        words: Sequence[str],
        *,
        mounts: Sequence[Mount],
        folder: str,
        environment: Mapping[str, str],
        timeout: timedelta,
        stdout: int | IO[bytes],
        stop: Stop,
        tail: Tail,
        takes_too_much: Callable[[], bool] = bool,
    ) -> tuple[int, Ended]:
        """Runs it to its end: the exit code as a shell would say it, and why it ended."""
        group = self._group()
        # Unique on this machine since it was booted: one process has one clock.
        mark = None if self.kind == "bubblewrap" else f"{os.getpid()}-{monotonic_ns()}"
        command = self.wrapped(words, mounts=mounts, folder=folder, environment=environment, timeout=timeout)
        try:
            with subprocess.Popen(
                command if group is None else ["/bin/sh", "-c", ENTER, *group.doors, "--", *command],
                env={"PATH": self._host_path}
                if mark is None
                else {**self._environment(environment), MARK: mark},
                cwd="/" if self.kind == "bubblewrap" else folder,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                start_new_session=True,
            ) as process:
                kin = Kindred(
                    process.pid,
                    most=self.bounds.processes,
                    mark=f"{MARK}={mark}" if mark else None,
                    group=group,
                )
                ended = watch(
                    process,
                    kin,
                    timeout=timeout,
                    stop=stop,
                    most_bytes=self.bounds.output_bytes,
                    feed=tail.feed,
                    takes_too_much=takes_too_much,
                )
        finally:
            if group is not None:
                group.remove()
        code = process.returncode
        return (128 - code if code < 0 else code), ended

    def _group(self, memory_bytes: int | None = None) -> Group | None:
        if self._groups is None:
            return None
        memory = memory_bytes or self.bounds.memory_bytes
        try:
            return self._groups.make(processes=self.bounds.processes, memory_bytes=memory)
        except OSError as error:
            raise GitError(f"no control group for a command: {error.strerror}") from error

    def wrapped(
        self,
        words: Sequence[str],
        *,
        mounts: Sequence[Mount],
        folder: str,
        environment: Mapping[str, str] | None = None,
        timeout: timedelta,
    ) -> list[str]:
        """The words of the process that is really started."""
        limited = ["/bin/sh", "-c", self._preamble(timeout), "sh", *words]
        if self.kind == "none":
            return limited
        return ["bwrap", *self._options(mounts, folder, environment or {}), "--", *limited]

    def _options(self, mounts: Sequence[Mount], folder: str, environment: Mapping[str, str]) -> list[str]:
        inner = {**self._environment(None), "HOME": HOME, **environment}
        return [
            *self._isolation,
            *self._filesystem(),
            *(word for mount in mounts for word in _bind(mount)),
            *(word for name, value in inner.items() for word in ("--setenv", name, value)),
            "--chdir",
            folder,
        ]

    def _environment(self, extra: Mapping[str, str] | None) -> dict[str, str]:
        """Nothing of our own environment but the way to programs."""
        inside = [*self._bin, "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
        path = inside if self.kind == "bubblewrap" else [*self._bin, *self._host_path.split(os.pathsep)]
        path.append(str(self._last_resort))
        return {
            "PATH": os.pathsep.join(dict.fromkeys(filter(None, path))),
            "HOME": str(self._etc.parent / "home"),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            **({} if self.kind == "bubblewrap" else {"GIT_CONFIG_SYSTEM": str(self._etc / "gitconfig")}),
            **(extra or {}),
        }

    def _filesystem(self) -> list[str]:
        words = ["--ro-bind", "/usr", "/usr"]
        for name in ROOT_LINKS:
            at = Path("/") / name
            if at.is_symlink():
                words += ["--symlink", str(at.readlink()), str(at)]
            elif at.is_dir():
                words += ["--ro-bind", str(at), str(at)]
        words += ["--proc", "/proc", "--dev", "/dev"]
        for temporary in ("/dev/shm", "/tmp"):  # noqa: S108  # the sandbox's own
            if "--size" in self._sized:
                words += ["--size", str(self.bounds.temporary_bytes)]
            words += ["--tmpfs", temporary]
        words += ["--dir", HOME, "--dir", "/etc"]
        java = sorted(str(at.relative_to("/etc")) for at in Path("/etc").glob("java*"))
        for name in (*ETC, *java):
            words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        for name in ETC_OURS:
            words += ["--ro-bind", str(self._etc / name), f"/etc/{name}"]
        for at in (self._last_resort, *self._read_only):
            words += ["--ro-bind", str(at), str(at)]
        return words

    def _preamble(self, timeout: timedelta, memory_bytes: int | None = None, output: str = "") -> str:
        most = self.bounds.processes
        if self.kind == "none":
            # Without a namespace of its own the limit counts all that the account runs on this machine.
            most = most + running if (running := threads_of_machine()) else 0
        return PREAMBLE.format(
            cpu=int(timeout.total_seconds() * (os.cpu_count() or 1)) + 10,
            file_blocks=self.bounds.file_bytes // 512,
            open_files=self.bounds.open_files,
            memory_kilobytes=(memory_bytes or self.bounds.memory_bytes) // 1024,
            output=output,
            processes=f"ulimit -u {most} 2>/dev/null || ulimit -p {most} 2>/dev/null" if most else "",
        )

    def _write_files(self) -> None:
        self._etc.mkdir(parents=True, exist_ok=True)
        self._last_resort.mkdir(exist_ok=True)
        # A system's own interpreter may be there as python3 alone; who asks for `python` gets it.
        with contextlib.suppress(FileExistsError):
            (self._last_resort / "python").symlink_to(sys.executable)
        (self._etc.parent / "home").mkdir(exist_ok=True)
        for name, text in ETC_OURS.items():
            at = self._etc / name
            wanted = text.format(uid=os.getuid(), gid=os.getgid())
            if not at.exists() or at.read_text() != wanted:
                at.write_text(wanted)

    def _probe(self) -> tuple[Literal["bubblewrap", "none"], str | None]:
        """What works here: all of it, bubblewrap before 0.8 (two options fewer), or no bubblewrap."""
        self.kind = "bubblewrap"
        reason = self._try(ISOLATION, sized=True)
        if reason is None:
            return "bubblewrap", None
        older = tuple(word for word in ISOLATION if word != "--disable-userns")
        if self._try(older, sized=False) is None:
            return (
                "bubblewrap",
                f"bubblewrap is too old to limit /tmp and to forbid nested namespaces ({reason})",
            )
        return "none", (
            f"bubblewrap doesn't work here ({reason}): commands run as ordinary processes of this account, "
            "with its files and its network"
        )

    def _try(self, isolation: tuple[str, ...], *, sized: bool) -> str | None:
        self._isolation, self._sized = isolation, ("--size",) if sized else ()
        try:
            done = subprocess.run(
                self.wrapped(["true"], mounts=(), folder="/", timeout=timedelta(seconds=10)),
                env={"PATH": self._host_path},
                capture_output=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return "it isn't installed" if isinstance(error, FileNotFoundError) else str(error)
        return None if done.returncode == 0 else done.stderr.decode("utf-8", "replace").strip() or "it failed"


def _bind(mount: Mount) -> tuple[str, str, str]:
    return ("--bind" if mount.writable else "--ro-bind", str(mount.source), mount.target)


def _below_usr(path: Path) -> bool:
    return path.resolve().is_relative_to("/usr")
