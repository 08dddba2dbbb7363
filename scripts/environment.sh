# Sourced by the other scripts: `prepare EXTRA` makes .venv beside this folder and installs the project into it,
# when that has not been done since pyproject.toml last changed. Sets $root and $bin.

set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
venv=$root/.venv
bin=$venv/bin

fail() { # what, why, what to do
    printf '\n✗ %s\n  %s\n  %s\n' "$1" "$2" "$3" >&2
    exit 1
}

version_of() { # prints "3 12"; nothing when that is no working Python
    "$1" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null || true
}

find_python() { # sets $python
    for python in "${PYTHON:-}" python3.12 python3.11 python3 python; do
        [ -n "$python" ] || continue
        case $(version_of "$python") in "3 11" | "3 12") return ;; esac
    done
    # Later ones have no wheel with a Redis in it.
    if command -v redis-server >/dev/null || command -v valkey-server >/dev/null; then
        for python in "${PYTHON:-}" python3 python3.14 python3.13 python; do
            [ -n "$python" ] || continue
            case $(version_of "$python") in "3 1"[3-9] | "3 "[2-9][0-9]) return ;; esac
        done
    fi
    fail "No suitable Python." \
        "Needed: Python 3.11 or 3.12, or a later one together with a redis-server on PATH." \
        "apt-get install python3 python3-venv, brew install python@3.12, or: PYTHON=/path/to/python3.12 $0"
}

check_git() {
    command -v git >/dev/null || fail "No git." \
        "Every task works in a git checkout." "apt-get install git   (or: brew install git)"
    set -- $(git --version | sed 's/[^0-9]*\([0-9]*\)\.\([0-9]*\).*/\1 \2/')
    [ "$1" -gt 2 ] || { [ "$1" -eq 2 ] && [ "$2" -ge 38 ]; } || fail "git $1.$2 is too old." \
        "Results are merged with git merge-tree --write-tree, which came with 2.38." "Install git 2.38 or later."
}

make_venv() {
    [ -x "$bin/python" ] && [ -n "$(version_of "$bin/python")" ] && return
    find_python
    printf 'Making .venv with %s …\n' "$("$python" --version)" >&2
    if ! said=$("$python" -m venv --clear "$venv" 2>&1); then
        rm -rf "$venv"
        fail "No virtual environment could be made with $python." \
            "$(printf '%s' "$said" | tail -n 3)" "Debian and Ubuntu keep that apart: apt-get install python3-venv"
    fi
}

prepare() {
    check_git
    make_venv
    wanted="$(cksum <"$root/pyproject.toml") $root"
    for extra in "$1" dev; do # dev has everything
        [ "$(cat "$venv/.installed-$extra" 2>/dev/null)" = "$wanted" ] && return
    done
    printf 'Installing the project and what it needs into .venv (about a minute, only when pyproject.toml changed) …\n' >&2
    "$bin/python" -m pip install --quiet --disable-pip-version-check --no-input -e "$root[$1]" || fail \
        "The installation failed." "pip's own message is above; most often no package index can be reached." \
        "Repair that and run this again: $0"
    printf '%s' "$wanted" >"$venv/.installed-$1"
}
