from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator.core.assignment import Stop
from orchestrator.core.verdict import StopReason
from orchestrator.workspaces.commands import Ended
from orchestrator.workspaces.errors import SandboxUnavailable
from orchestrator.workspaces.programs import Mount
from orchestrator.workspaces.sandbox import Bounds, Ran, Sandbox
from tests.integration.repositories import without_bubblewrap

BOUNDS = Bounds(processes=100, output_bytes=2 * 1024**2, shown_bytes=1000, kept_bytes=500)
Run = Callable[..., Ran]


def runner(sandbox: Sandbox, tree: Path) -> Run:
    tree.mkdir()
    mount = Mount(tree, "/workspace", writable=True)

    def run(
        command: str,
        *,
        seconds: float = 20,
        stop: Stop | None = None,
        on_output: Callable[[str], None] = lambda _text: None,
    ) -> Ran:
        return sandbox.run(
            ["/bin/sh", "-c", command],
            mounts=(mount,),
            folder=sandbox.inside(mount),
            timeout=timedelta(seconds=seconds),
            on_output=on_output,
            stop=stop or Stop(),
        )

    return run


@pytest.fixture
def bubblewrap(tmp_path: Path) -> Sandbox:
    sandbox = Sandbox(tmp_path / "sandbox", path=os.environ["PATH"], bounds=BOUNDS)
    if sandbox.kind != "bubblewrap":
        pytest.skip(f"NOT TESTED HERE: {sandbox.warning}")
    return sandbox


@pytest.fixture(params=["bubblewrap", "none"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    if request.param == "none":
        sandbox = without_bubblewrap(tmp_path / "plain")
        sandbox.bounds = BOUNDS
    else:
        sandbox = request.getfixturevalue("bubblewrap")
    return runner(sandbox, tmp_path / "tree")


@pytest.fixture
def boxed(bubblewrap: Sandbox, tmp_path: Path) -> Run:
    return runner(bubblewrap, tmp_path / "tree")


def alive(mark: str) -> list[int]:
    """Processes with this word on their command line."""
    found = []
    for at in Path("/proc").iterdir():
        if at.name.isdecimal():
            try:
                words = (at / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark.encode() in words:
                found.append(int(at.name))
    return found


def test_a_command_says_how_it_ended_and_what_it_printed(run: Run) -> None:
    heard: list[str] = []
    ran = run("echo out; echo err >&2; exit 3", on_output=heard.append)
    assert (ran.code, ran.ended, ran.truncated) == (3, Ended.EXIT, False)
    assert sorted(ran.output.split()) == ["err", "out"]
    assert sorted("".join(heard).split()) == ["err", "out"]
    assert run("kill -9 $$").code == 137


def test_output_comes_while_the_command_still_runs(run: Run) -> None:
    stop = Stop()

    def hear(text: str) -> None:
        if "first" in text:
            stop.set(StopReason.CANCEL)

    ran = run("echo first; sleep 600", stop=stop, on_output=hear)
    assert (ran.code, ran.ended) == (None, Ended.STOP)
    assert ran.output == "first\n"


def test_a_stop_that_comes_later_ends_a_silent_command(run: Run) -> None:
    stop = Stop()
    timer = threading.Timer(0.3, stop.set, (StopReason.CANCEL,))
    timer.start()
    assert run("sleep 600", stop=stop).ended is Ended.STOP
    timer.join()


def test_an_endless_sleep_ends_at_its_timeout(run: Run) -> None:
    assert run("sleep 600", seconds=0.5).ended is Ended.TIMEOUT


def test_endless_output_is_cut_short_and_its_end_is_kept(run: Run) -> None:
    heard: list[str] = []
    ran = run("yes", on_output=heard.append)
    assert (ran.ended, ran.truncated) == (Ended.OUTPUT, True)
    assert ran.output.endswith("y\ny\n")
    assert len(ran.output) < BOUNDS.kept_bytes + 100
    assert len("".join(heard)) < BOUNDS.shown_bytes + 100


def test_letters_that_are_cut_in_two_by_a_pipe_arrive_whole(run: Run) -> None:
    heard: list[str] = []
    run(r"printf 'caf\303'; sleep 0.2; printf '\251!'", on_output=heard.append)
    assert "".join(heard) == "café!"


def test_what_a_command_leaves_running_ends_with_it(run: Run) -> None:
    seconds = str(100_000 + os.getpid())
    ran = run(
        f"(setsid sleep {seconds} >/dev/null 2>&1 &); setsid sleep {seconds} & sleep {seconds} & echo done"
    )
    assert (ran.code, ran.output) == (0, "done\n")
    assert alive(seconds) == []


def test_nothing_survives_a_timeout(run: Run) -> None:
    seconds = str(200_000 + os.getpid())
    run(
        f"(setsid sleep {seconds} &); setsid sh -c 'trap \"\" TERM; sleep {seconds}; sleep {seconds}'",
        seconds=0.5,
    )
    assert alive(seconds) == []


def test_a_callback_that_fails_takes_the_command_with_it(run: Run) -> None:
    seconds = str(300_000 + os.getpid())

    def fail(_text: str) -> None:
        raise ConnectionError("the line is gone")

    with pytest.raises(ConnectionError):
        run(f"echo x; sleep {seconds}", on_output=fail)
    assert alive(seconds) == []


# Doubles at most ten times: a real one would take the machine along if what is tested here didn't work.
BOMB = """python -c "
import os, time
for _ in range(10):
    try:
        os.fork()
    except OSError:
        print('refused', flush=True)
        break
time.sleep({seconds})
"
"""


def test_processes_without_end_are_held_back(run: Run) -> None:
    seconds = 400_000 + os.getpid()
    ran = run(BOMB.format(seconds=seconds), seconds=4)
    assert ran.code is None
    assert ran.ended is Ended.PROCESSES or "refused" in ran.output
    assert alive(str(seconds)) == []


def test_without_a_control_group_root_is_counted_instead(bubblewrap: Sandbox, tmp_path: Path) -> None:
    bubblewrap._groups = None
    ran = runner(bubblewrap, tmp_path / "tree")(BOMB.format(seconds=500_000 + os.getpid()), seconds=8)
    assert ran.ended is Ended.PROCESSES or "refused" in ran.output


def test_memory_without_end_is_refused(run: Run) -> None:
    ran = run("python -c 'x = bytearray(6 * 1024**3)'")
    assert ran.code not in (0, None)


def test_the_workers_environment_stays_outside(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-secret")
    ran = run("env; cat /proc/1/environ /proc/self/environ 2>/dev/null")
    assert "PATH=" in ran.output
    if "HOME=/tmp/home" in ran.output:
        assert "a-secret" not in ran.output


def test_the_interpreter_and_its_packages_are_there(run: Run) -> None:
    ran = run("python -c 'import sys, pytest; print(sys.prefix)'")
    assert ran.output.strip() == sys.prefix


def test_only_the_workspace_and_its_own_tmp_can_be_written(boxed: Run, tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("secret")
    ran = boxed(
        f"cat {outside}; touch {outside}; touch /usr/x /etc/x /x; ls /root /home /var; "
        "touch /tmp/ok /workspace/ok && ls /tmp /workspace; "
        'python -c \'open("/tmp/home/x", "w")\' && echo home'
    )
    assert "secret" not in ran.output.replace(str(outside), "")
    assert ran.output.count("Read-only file system") >= 1
    assert ran.output.strip().endswith("home")
    assert outside.read_text() == "secret"
    assert (tmp_path / "tree" / "ok").exists()


def test_there_is_no_network_and_no_other_process(boxed: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ran = boxed(f"python -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}), 2)'")
    assert "ConnectionRefusedError" in ran.output or "Network is unreachable" in ran.output
    ran = boxed(
        f"cat /proc/net/dev | tail -n +3 | grep -v lo: ; kill -0 {os.getpid()}; ls /proc | grep -c '^[0-9]'"
    )
    assert ran.output.strip().splitlines()[-1] in {str(n) for n in range(1, 8)}


def test_no_right_can_be_gained_inside(boxed: Run) -> None:
    ran = boxed(
        "unshare -U true; unshare -m true; mount -t tmpfs x /workspace; mknod /workspace/d b 8 0; "
        "grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/self/status"
    )
    assert ran.output.count("\n") >= 6
    assert "CapEff:\t0000000000000000" in ran.output
    assert "CapBnd:\t0000000000000000" in ran.output
    assert "NoNewPrivs:\t1" in ran.output


def test_a_full_tmp_is_the_commands_own_trouble(tmp_path: Path, bubblewrap: Sandbox) -> None:
    bubblewrap.bounds = Bounds(temporary_bytes=1024**2, file_bytes=10 * 1024**2)
    run = runner(bubblewrap, tmp_path / "tree")
    assert "No space left" in run("head -c 3000000 /dev/zero > /tmp/x").output
    assert "No space left" in run("head -c 3000000 /dev/zero > /dev/shm/x").output
    assert run("head -c 30000000 /dev/zero > /workspace/x").code != 0
    assert (tmp_path / "tree" / "x").stat().st_size <= 10 * 1024**2


WORKER = """
import os, sys
from datetime import timedelta
from pathlib import Path
from orchestrator.core.assignment import Stop
from orchestrator.workspaces.sandbox import Sandbox
folder, path, seconds = sys.argv[1:]
sandbox = Sandbox(Path(folder), path=path)
command = f"echo up; (setsid sleep {seconds} &) ; sleep {seconds}"
sandbox.run(["/bin/sh", "-c", command], mounts=(), folder="/", timeout=timedelta(minutes=1),
            on_output=lambda text: print(text, flush=True), stop=Stop())
"""


def killed_worker(folder: Path, path: str, seconds: str) -> None:
    words = [sys.executable, "-c", WORKER, str(folder), path, seconds]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"up\n"
        worker.send_signal(signal.SIGKILL)


def gone(seconds: str) -> bool:
    """The kernel takes a moment to end what it was told to end."""
    for _ in range(500):
        if not alive(seconds):
            return True
        threading.Event().wait(0.02)
    return False


def test_the_death_of_the_worker_ends_the_command(tmp_path: Path, bubblewrap: Sandbox) -> None:
    assert bubblewrap.kind == "bubblewrap"
    seconds = str(600_000 + os.getpid())
    killed_worker(tmp_path / "other", os.environ["PATH"], seconds)
    assert gone(seconds)


def test_without_bubblewrap_the_next_worker_ends_what_a_killed_one_left(tmp_path: Path) -> None:
    plain = without_bubblewrap(tmp_path / "plain")
    assert plain.kind == "none"
    path = str(tmp_path / "plain" / "programs")
    seconds = str(700_000 + os.getpid())
    killed_worker(tmp_path / "other", path, seconds)
    Sandbox(tmp_path / "next", path=path)
    assert gone(seconds)


def test_without_bubblewrap_it_says_so_and_strict_mode_refuses(tmp_path: Path) -> None:
    plain = without_bubblewrap(tmp_path / "plain")
    assert plain.kind == "none"
    assert "isn't installed" in (plain.warning or "")
    with pytest.raises(SandboxUnavailable):
        Sandbox(tmp_path / "x", path=str(tmp_path / "plain" / "programs"), strict=True)


def test_groups_of_ended_commands_are_gone(run: Run) -> None:
    run("true")
    for root in (Path("/sys/fs/cgroup/orchestrator"), Path("/sys/fs/cgroup/pids/orchestrator")):
        if root.is_dir():
            assert not [at for at in root.iterdir() if at.name.startswith(f"{os.getpid()}-")]
