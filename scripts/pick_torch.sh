#!/bin/sh
# Print the constraint set for this machine: cpu, cuda, or legacy-gpu (V100, or a driver older than 580).
info=$(nvidia-smi --query-gpu=compute_cap,driver_version --format=csv,noheader 2>/dev/null) || info=
[ -n "$info" ] || { echo cpu; exit 0; }
printf '%s\n' "$info" | awk -F', *' '{ split($2, d, "."); if ($1 + 0 < 7.5 || d[1] + 0 < 580) old = 1 }
                                     END { print old ? "legacy-gpu" : "cuda" }'
