# Shared by the scripts beside it: `ensure_environment EXTRAS` makes .venv in the repository and installs GAT into it.
# Sourced, not run. Leaves the shell in the repository and $PYTHON pointing at the environment's python.
#
#   GAT_PYTHON   the python to build the environment with (default: the first of python3, python3.14 ... python3.11 that is
#                3.11 or later)

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '==> %s\n' "$*"; }
stop() { printf 'error: %s\n' "$*" >&2; exit 1; }

find_python() {
    local candidate found=""
    for candidate in ${GAT_PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        command -v "$candidate" >/dev/null 2>&1 || continue
        found="$found $candidate ($("$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo broken))"
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    stop "wanted Python 3.11 or later, found:${found:- none}. Install one (Debian, Ubuntu: apt install python3 python3-venv)" \
        "or name it: GAT_PYTHON=/path/to/python3.12 bash $0"
}

ensure_environment() {
    local extras="$1" target stamp wanted covered python free_kb pip=(-m pip --disable-pip-version-check install)
    PYTHON="$PWD/.venv/bin/python"
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        python="$(find_python)"
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            stop "this Python cannot make virtual environments. Debian, Ubuntu: apt install python3-venv (or, for" \
                "$python, $("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'))"
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv || stop "could not make .venv in $PWD"
    fi
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        stop ".venv is of $("$PYTHON" --version), wanted 3.11 or later; remove .venv and run this again"

    # What was installed is a function of pyproject.toml, the peers, the place (an editable install points to it) and the Python.
    target=".${extras:+[$extras]}"
    stamp=".venv/installed-${extras:-core}"
    wanted="$("$PYTHON" -c 'import hashlib, sys; print(hashlib.sha256(b"".join(open(name, "rb").read() for name in ("pyproject.toml", "tests/peers.txt"))).hexdigest(), sys.version.split()[0])') $PWD"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        say "GAT${extras:+ ($extras)} is installed in .venv"
        return
    fi
    if ! "$PYTHON" -c 'import torch' >/dev/null 2>&1; then
        free_kb="$(df -Pk . | awk 'NR == 2 { print $4 }')"
        [ "${free_kb:-0}" -gt 9000000 ] ||
            say "warning: the installation takes about 7 GB of disk and as much again for a moment; $((free_kb / 1000000)) GB are free"
        say "installing GAT${extras:+ ($extras)} and PyTorch into .venv: about 3 GB to download the first time, so some minutes"
    else
        say "installing GAT${extras:+ ($extras)} into .venv: pyproject.toml or the place of the repository is new to it"
    fi
    [ -t 1 ] || pip+=(--quiet)
    rm -f "$stamp"
    "$PYTHON" "${pip[@]}" --upgrade pip || stop "pip could not upgrade itself; is a package registry within reach?"
    "$PYTHON" "${pip[@]}" --editable "$target" || stop "the installation failed; its last lines above say why. Running this again continues"
    if [[ "$extras" == dev || "$extras" == test ]]; then
        "$PYTHON" "${pip[@]}" --no-deps --requirement tests/peers.txt || stop "could not install the peers of tests/peers.txt"
        # PyPI has no detectron2, but a copy for Python 3.10, of which the Python part runs with any other.
        "$PYTHON" "${pip[@]}" --no-deps --upgrade --target .venv/detectron2 --only-binary=:all: --python-version 3.10 \
            --implementation cp --platform any sal-detectron2==0.7.2 || say "warning: the tests with detectron2 will be skipped"
    fi
    case "$extras" in  # what each of them brings along
        dev) covered="dev test core" ;;
        test) covered="test core" ;;
        *) covered="${extras:-core}" ;;
    esac
    for extras in $covered; do
        printf '%s\n' "$wanted" >".venv/installed-$extras"
    done
}
