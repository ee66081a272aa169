# Sourced from the repository's root: `. launch/environment.sh EXTRAS` makes .venv if it is missing,
# installs the package with these extras if they, setup.py or the Python changed, and activates it.
# PYTHON=python3.12 chooses the Python.

if [ -n "${PYTHON:-}" ] && [ -d .venv ]; then
  version='import sys; print(*sys.version_info[:2], sep=".")'
  wanted=$("$PYTHON" -c "$version") && present=$(.venv/bin/python -c "$version") || return 1
  if [ "$wanted" != "$present" ]; then
    echo "error: .venv has Python $present, not $wanted: remove it, or leave PYTHON unset" >&2
    return 1
  fi
fi

if [ ! -d .venv ]; then
  for python in ${PYTHON:-python3.12 python3.13 python3.11 python3}; do
    # ensurepip: some systems ship a Python that cannot make a virtual environment.
    if "$python" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      break
    fi
    python=
  done
  if [ -z "$python" ]; then
    found="no Python 3.11 or newer with venv found"
    echo "error: ${PYTHON:+PYTHON=$PYTHON: }$found: install python3.12 and python3.12-venv" >&2
    return 1
  fi
  echo "making .venv with $("$python" --version)"
  "$python" -m venv .venv
fi

if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
  echo "error: .venv has no working Python with pip: remove it and run this again" >&2
  return 1
fi
. .venv/bin/activate

# Editable, so that only what it depends on can be out of date.
wanted="$1 $(python --version) $(cat setup.py pyproject.toml | cksum)"
stamp=".venv/installed-${1//,/-}"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  echo "installing dinov3_jax[$1] into .venv"
  python -m pip install --quiet --disable-pip-version-check -e ".[$1]"
  echo "$wanted" > "$stamp"
fi
