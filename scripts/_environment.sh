# Sourced by quickstart.sh and test.sh: goes to the repository's root, makes .venv there with the given requirement
# files, and activates it. An environment that already holds them is used as it is.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

use_environment() {
  local python=${PYTHON:-python3} wanted
  wanted=$(cat "$@")
  if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "error: $("$python" --version) is too old; install Python 3.11 or newer, or name one: PYTHON=python3.12 bash $0" >&2
      return 1
    }
    echo "Installing $* into .venv (PyTorch is large: this takes some minutes)"
    "$python" -m venv .venv
    local files=() file
    for file in "$@"; do files+=(-r "$file"); done
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "${files[@]}"
    printf '%s' "$wanted" > .venv/installed
  fi
  source .venv/bin/activate
}
