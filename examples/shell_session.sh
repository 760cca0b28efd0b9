#!/usr/bin/env bash
# Mount an archive, look around, copy one file, unmount.
#
#   examples/shell_session.sh SOURCE [PATTERN]
#   XNAT_USER=me XNAT_PASS=... examples/shell_session.sh https://xnat.example.org '*.nii.gz'
set -euo pipefail

source=$1
pattern=${2:-*.nii.gz}
mountpoint=$(mktemp -d)

# Returns once the mount answers; with an error and no mount otherwise.
xnatfs mount "$source" "$mountpoint"
trap 'xnatfs umount "$mountpoint" && rmdir "$mountpoint"' EXIT

echo "== projects"
ls -l "$mountpoint"

# Listing is cheap: one session costs three requests, however many scans and files it has.
echo "== the first file called $pattern"
file=$(find "$mountpoint" -name "$pattern" -type f -print -quit)
ls -l "$file"

# Reading the start of a file moves about as much as was asked for, not the whole file.
echo "== its first 16 bytes"
head -c 16 "$file" | od -A d -t x1

echo "== a copy of it"
cp "$file" .
ls -l "$(basename "$file")"
