# Sourced by quickstart.sh and test.sh: goes to the repository's root, creates .venv there with the given requirement
# files, and activates it. A requirement file that is installed already is not installed again.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

use_environment() {
  local python=${PYTHON:-python3} file stamp
  if [ ! -x .venv/bin/python ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "error: $("$python" --version) is too old; install Python 3.11 or newer, or name one: PYTHON=python3.12 bash $0" >&2
      return 1
    }
    "$python" -m venv .venv
  fi
  for file in "$@"; do
    stamp=.venv/${file//\//-}.installed
    if ! cmp -s "$file" "$stamp"; then
      echo "Installing $file into .venv (PyTorch is large: this may take some minutes)"
      .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file"
      cp "$file" "$stamp"
    fi
  done
  source .venv/bin/activate
}
