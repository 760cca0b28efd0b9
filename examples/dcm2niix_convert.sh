#!/usr/bin/env bash
# Convert one DICOM folder of a mounted archive to NIfTI, without copying the DICOM files first.
#
#   examples/dcm2niix_convert.sh MOUNT/PROJECT/SUBJECT/SESSION/scans/4-T1w/DICOM OUTPUT_FOLDER
set -euo pipefail

dicom=$1
output=$2
mkdir -p "$output"

# The mount is read-only, so the result goes elsewhere: -o. -b y also writes the BIDS sidecar, -z n leaves it
# uncompressed (n can be memory-mapped), -f names it after the protocol and series number.
dcm2niix -b y -z n -f '%p_%s' -o "$output" "$dicom"
