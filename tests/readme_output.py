"""Puts the output of a true run into the README: `./scripts/demo | .venv/bin/python -m tests.readme_output`.

Run it on a machine that does nothing else, with the installation done: what it says about time is a promise.
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.readme import README

BEGIN = "<!-- The output of a real run. Lines were left out where … stands alone, and long ones are cut. -->"
END = "<!-- End of the output. -->"
WIDTH = 110
_DETAIL = re.compile(r"^ \d\d:\d\d:\d\d step \d+/\d+     ")


def excerpt(lines: Iterable[str]) -> Iterator[str]:
    """What of it matters, in its order."""
    left_out = in_diff = False
    for line in lines:
        shown = line.rstrip()
        in_diff = (in_diff or shown.startswith("diff --git ")) and shown != " History"
        if in_diff or _DETAIL.match(shown):
            left_out = True
        elif shown:
            if left_out:
                yield " …"
            left_out = False
            yield shown if len(shown) <= WIDTH else f"{shown[: WIDTH - 1]}…"


def renewed(readme: str, output: str) -> str:
    """The README with this output; who ran it, and where, is nobody's business."""
    anonymous = output.replace(str(Path.home()), "/home/ada").replace(f"@{socket.gethostname()}/", "@vm/")
    begins = anonymous.index("orchestrator ")
    text = "\n".join(excerpt(anonymous[begins:].splitlines()))
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n```text\n{text}\n```\n{END}{tail}"


if __name__ == "__main__":
    README.write_text(renewed(README.read_text("utf-8"), sys.stdin.read()), "utf-8")
