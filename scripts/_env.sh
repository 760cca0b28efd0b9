# shellcheck shell=bash disable=SC2034 # what is set here is used by the scripts that source it
# Sourced by the other scripts: where the project is, which Python, the virtual environment, the system packages.
# Knows nothing of what is then run. Works as root and as an ordinary user (who is told what to install, never asked
# for a password), on the first run and on every later one (a stamp in the environment says that it is up to date).

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
oldest_minor=10 # Python 3.10, as pyproject.toml says

say() { printf '%s\n' "$*" >&2; }

die() { # die MESSAGE [HINT]
  say "$(basename "$0"): $1"
  [ -z "${2:-}" ] || say "hint: $2"
  exit 1
}

is_root() { [ "$(id -u)" -eq 0 ]; }

have() { command -v "$1" >/dev/null 2>&1; }

# -- system packages ------------------------------------------------------------------------------------------------

have_library() { # have_library SONAME
  local ldconfig
  for ldconfig in ldconfig /sbin/ldconfig /usr/sbin/ldconfig; do
    if have "$ldconfig"; then
      "$ldconfig" -p | grep -F "$1" >/dev/null && return 0 || return 1
    fi
  done
  compgen -G "/usr/lib*/$1*" >/dev/null || compgen -G "/usr/lib/*/$1*" >/dev/null
}

apt_updated=

# The first of several names that this release of Debian or Ubuntu has: libfuse2 became libfuse2t64, for example.
apt_name() {
  local name
  for name in "$@"; do
    if [ -n "$(apt-cache madison "$name" 2>/dev/null)" ]; then
      printf '%s' "$name"
      return 0
    fi
  done
  printf '%s' "${!#}"
}

# apt_install NAME[|OTHER NAME]...: as root installs; otherwise returns 1 and the caller says what is missing.
apt_install() {
  local -a names=()
  local spec log
  is_root && have apt-get || return 1
  log=$(mktemp)
  if [ -z "$apt_updated" ]; then
    say "fetching Debian's package lists ..."
    DEBIAN_FRONTEND=noninteractive apt-get -q update >"$log" 2>&1 || say "$(grep -E '^(E|W|Err)' "$log" || cat "$log")"
    apt_updated=yes
  fi
  for spec in "$@"; do
    # shellcheck disable=SC2086 # the | between names was made a blank on purpose
    names+=("$(apt_name ${spec//|/ })")
  done
  say "installing with apt: ${names[*]}"
  if ! DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "${names[@]}" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}

ensure_fuse() {
  local -a missing=()
  have fusermount3 || missing+=(fuse3)
  have_library libfuse3.so || missing+=('libfuse3-4|libfuse3-3')
  have_library libfuse.so.2 || missing+=('libfuse2t64|libfuse2')
  if [ ${#missing[@]} -gt 0 ] && ! apt_install "${missing[@]}"; then
    # One of the two libraries is enough; fusermount3 is what lets an ordinary user mount.
    if ! have_library libfuse3.so && ! have_library libfuse.so.2; then
      die "libfuse is not installed" "as root: apt-get install fuse3 libfuse3-3 (or libfuse3-4, or libfuse2)"
    fi
    if ! is_root && ! have fusermount3 && ! have fusermount; then
      die "fusermount3 is not installed: without it only root can mount" "as root: apt-get install fuse3"
    fi
  fi
  if is_root; then
    [ -e /dev/fuse ] || mknod -m 0666 /dev/fuse c 10 229 2>/dev/null || true
    # udev gives every desktop and server 0666; a machine without udev keeps 0600, and no ordinary user can mount.
    [ ! -c /dev/fuse ] || chmod 0666 /dev/fuse 2>/dev/null || true
  fi
  [ -c /dev/fuse ] || die "there is no /dev/fuse on this machine" "as root: modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
  { [ -r /dev/fuse ] && [ -w /dev/fuse ]; } || die "/dev/fuse is closed to $(id -un)" "as root: chmod 0666 /dev/fuse (udev does this on most systems)"
}

# The programs that the tests put on a mount.
ensure_tools() {
  local -a missing=()
  local pair
  for pair in dcm2niix:dcm2niix dcmdump:dcmtk rsync:rsync getfattr:attr curl:curl rclone:rclone ip:iproute2; do
    have "${pair%%:*}" || missing+=("${pair#*:}")
  done
  [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}" ||
    say "note: tests of these programs will be skipped, for want of (apt-get install as root): ${missing[*]}"
}

# -- Python ---------------------------------------------------------------------------------------------------------

python_works() { # python_works PROGRAM: 3.10 or newer, able to make a virtual environment
  "$1" -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, $oldest_minor))" >/dev/null 2>&1
}

find_python() { # prints the path of a usable Python
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3; do
    if [ -n "$candidate" ] && python_works "$candidate"; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return 0
    fi
  done
  return 1
}

# Prints the path of every minor version's interpreter that this machine has, oldest first, PATH and pyenv.
all_pythons() {
  local candidate
  {
    for candidate in python3.{10..19} "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python; do
      if have "$candidate" && python_works "$candidate"; then
        "$candidate" -c 'import sys; print(sys.version_info[1], sys.executable)'
      fi
    done
  } | sort -n -u -k1,1 | cut -d' ' -f2-
}

pip_quietly() { # pip_quietly VENV ARGS...: silent unless it fails
  local venv=$1 log
  shift
  log=$(mktemp)
  if ! "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@" >"$log" 2>&1; then
    grep -E '^(ERROR|error)' "$log" >&2 || tail -n 20 "$log" >&2
    rm -f "$log"
    return 1
  fi
  rm -f "$log"
}

environment_stamp() { # environment_stamp KIND
  printf '%s %s %s' "$1" "$project" "$(cat "$project/pyproject.toml" "$project/constraints.txt" | sha256sum | cut -c1-32)"
}

environment_is_current() { # environment_is_current VENV KIND
  [ -x "$1/bin/python" ] && "$1/bin/python" -c '' 2>/dev/null && [ -r "$1/xnatfs.stamp" ] &&
    grep -qxF "$(environment_stamp "$2")" "$1/xnatfs.stamp"
}

# fill_environment VENV PYTHON KIND: makes it when it is not there, then installs the project in it, editable.
fill_environment() {
  local venv=$1 python=$2 kind=$3 part
  if ! { [ -x "$venv/bin/python" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
    rm -rf "$venv"
    "$python" -m venv "$venv" || die "no virtual environment could be made in $venv"
  fi
  rm -f "$venv/xnatfs.stamp"
  say "installing xnatfs and what it needs into $venv (once; about a minute) ..."
  case $kind in
    demo)
      pip_quietly "$venv" install -c "$project/constraints.txt" -e "${project}[demo]" || die "pip could not install xnatfs"
      ;;
    test) # --group needs pip 25.1
      pip_quietly "$venv" install 'pip>=25.1' || die "pip could not be updated"
      (cd "$project" && pip_quietly "$venv" install -c constraints.txt -e '.[demo,fsspec]' --group dev) ||
        die "pip could not install xnatfs and its tests' packages"
      for part in demo bench; do # what these need is there, too
        environment_stamp "$part" >>"$venv/xnatfs.stamp" && echo >>"$venv/xnatfs.stamp"
      done
      ;;
    bench)
      pip_quietly "$venv" install 'pip>=25.1' || die "pip could not be updated"
      (cd "$project" && pip_quietly "$venv" install -c constraints.txt -e '.[demo]' --group bench) ||
        die "pip could not install xnatfs and its peers"
      environment_stamp demo >>"$venv/xnatfs.stamp" && echo >>"$venv/xnatfs.stamp"
      ;;
  esac
  environment_stamp "$kind" >>"$venv/xnatfs.stamp"
}

# ensure_environment KIND (demo, test or bench): sets $venv. The checkout's .venv, or one in the user's cache directory when
# the checkout belongs to someone else.
ensure_environment() {
  local kind=$1 here=$project/.venv cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/xnatfs python
  cache=$cache/venv-$(printf '%s' "$project" | sha256sum | cut -c1-12)
  for venv in "$here" "$cache"; do
    ! environment_is_current "$venv" "$kind" || return 0
  done
  venv=$here
  if [ -e "$here" ] && { [ ! -w "$here" ] || [ ! -O "$here" ]; } || [ ! -w "$project" ]; then
    venv=$cache
    mkdir -p "$(dirname "$venv")"
  fi
  if ! python=$(find_python); then
    apt_install python3 python3-venv ||
      die "no Python 3.$oldest_minor or newer with venv was found" "as root: apt-get install python3 python3-venv; or name one: PYTHON=/path/to/python3 $0"
    python=$(find_python) || die "no Python 3.$oldest_minor or newer with venv was found" "name one: PYTHON=/path/to/python3 $0"
  fi
  exec 9>"$venv.lock" # two scripts started at once: the second waits, and finds the work done
  ! have flock || flock 9
  environment_is_current "$venv" "$kind" || fill_environment "$venv" "$python" "$kind"
  exec 9>&-
}
