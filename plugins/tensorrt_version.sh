#!/usr/bin/env bash
# Prints the version of the TensorRT headers in a folder, e.g. 8.6.
set -euo pipefail
header=$1/NvInferVersion.h
[[ -f $header ]] || { echo "error: no NvInferVersion.h in $1" >&2; exit 1; }
part() { awk -v name="$1" '$1 == "#define" && ($2 == "NV_TENSORRT_" name || $2 == "TRT_" name "_ENTERPRISE") && $3 ~ /^[0-9]+$/ { print $3; exit }' "$header"; }
echo "$(part MAJOR).$(part MINOR)"
