#!/usr/bin/env bash
# The four tools of compute-sanitizer on a small set of cases: `bash bench/sanitize.sh GDN`.
set -euo pipefail
gdn=$1
# racecheck follows single threads, not a warp whose one lane arrives for all.
export GDN_ALL_ARRIVE=1
for tool in memcheck initcheck synccheck racecheck; do
    # The driver is asked for a parameter too many on purpose: that refusal is no error.
    for filter in 'B=1 H=8 HV=16' 'B=5 H=2 HV=8 K=128' 'B=3 H=2 HV=4 K=256' 'K=33'; do
        printf '%s, %s: ' "$tool" "$filter"
        compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 1 --print-limit 5 \
            "$gdn" check --backend cuda --filter "$filter" --dtype bf16 | grep -E 'checks:|ERROR|HAZARD|=====.*(Invalid|Uninit|Race|Barrier)' | tr '\n' ' '
        echo
    done
done
