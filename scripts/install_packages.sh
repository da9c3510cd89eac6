#!/usr/bin/env bash
# Usage: install_packages.sh GROUP...
# Installs what is missing from the named groups of scripts/packages.txt, and says so. Does nothing when all is there.
set -euo pipefail
list="$(dirname "$0")/packages.txt"

# No process substitution in this script: a bare chroot has no /dev/fd.
names=$(awk -v groups=" $* " '$1 !~ /^#/ && index(groups, " " $2 " ") {print $1}' "$list")
mapfile -t wanted <<<"$names"

if ! command -v dpkg-query >/dev/null; then
  echo "This is neither Debian nor Ubuntu: going on with what is here. Needed are the equivalents of: ${wanted[*]}"
  exit 0
fi

# One call for all; it fails when a name is unknown, which here only means missing.
have=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null || true)
missing=()
for package in "${wanted[@]}"; do
  grep -qxF "installed $package" <<<"$have" || missing+=("$package")
done
[ "${#missing[@]}" -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "error: packages are missing, and installing them needs root or sudo. As root, run:" >&2
    echo "  apt-get update && apt-get install ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -qy -o DPkg::Lock::Timeout=300 \
    -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 "$@" </dev/null >>"$log" 2>&1
}

echo "Installing ${#missing[@]} missing packages with apt-get${as_root:+ (through sudo)}: ${missing[*]}"
start=$SECONDS
if [ "${#as_root[@]}" -ne 0 ]; then
  sudo -v || { echo "error: sudo gave no rights to install packages." >&2; exit 1; }
fi
# A source that cannot be read matters only if a package is not found for it.
apt update || true
if ! apt install --no-install-recommends "${missing[@]}"; then
  tail -n 5 "$log" >&2
  echo "error: apt-get could not install the missing packages." >&2
  echo "Its last lines are above. Is there a network, and do the machine's package sources work?" >&2
  exit 1
fi
echo "Installed in $((SECONDS - start)) s."
