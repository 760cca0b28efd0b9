#!/bin/sh
# A TCIA manifest as a folder, all on this machine: an NBIA-compatible server, its manifest mounted, a patient copied.
# Usage: tcia_demo.sh DESTINATION        (with your own manifest: xnatfs mount FILE.tcia DIRECTORY)
set -eu

work=$(mktemp -d)
python3 -m xnatfs.demo > "$work/address" &
server=$!
trap 'xnatfs umount "$work/tcia" 2>/dev/null || true; kill $server; rm -rf "$work"' EXIT
while [ ! -s "$work/address" ]; do sleep 0.1; done
address=$(head -n 1 "$work/address")

curl -s "$address/demo.tcia" > "$work/demo.tcia"
mkdir "$work/tcia"
xnatfs mount "$work/demo.tcia" "$work/tcia"

ls "$work/tcia"                                # from one request, however many series the manifest has
head -n 2 "$work/tcia/metadata.csv"
cp -r "$work/tcia/Demo Lung/DL-0001" "$1"      # each series is downloaded once, checked, and kept in the cache
find "$1" -name '*.dcm' | wc -l
