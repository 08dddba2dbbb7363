"""Runs inside the sandbox as the parent of an agent, which has no network there but this.

    relay.py PORT SOCKET -- PROGRAM [ARGUMENT …]

Listens on 127.0.0.1:PORT and passes each connection on to the unix socket, behind which lies the gateway.
Input, output and errors are the program's own; so are its exit code and the signals that it is sent. The
standard library alone, since nothing else may be there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from types import FrameType

CHUNK = 65536
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def main(words: list[str]) -> int:
    port, path, separator, *program = words
    if separator != "--" or not program:
        sys.exit("relay.py PORT SOCKET -- PROGRAM [ARGUMENT …]")
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=64)
    threading.Thread(target=serve, args=(listener, path), daemon=True).start()
    try:
        child = subprocess.Popen(program)
    except OSError as error:
        sys.stderr.write(f"{program[0]}: {error.strerror}\n")
        return 127 if isinstance(error, FileNotFoundError) else 126

    def pass_on(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    # Ours are copies: the program's end must be the end of its pipes.
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nothing, descriptor)
    code = child.wait()
    return 128 - code if code < 0 else code


def serve(listener: socket.socket, path: str) -> None:
    while True:
        ours, _ = listener.accept()
        threading.Thread(target=connect, args=(ours, path), daemon=True).start()


def connect(ours: socket.socket, path: str) -> None:
    with ours, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as theirs:
        try:
            theirs.connect(path)
        except OSError:
            return
        back = threading.Thread(target=copy, args=(theirs, ours), daemon=True)
        back.start()
        copy(ours, theirs)
        back.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    """Until the source has said all; then the target hears that nothing more comes."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
