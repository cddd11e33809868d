#!/usr/bin/env bash
# The accuracy gate that runs anywhere: the trained fixture's questions against a server of it.
#   bash eval/tiny.sh URL [--slack 0.02]
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ $# -lt 1 ]; then
    sed -n '2,3s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
exec "$(bash "$here/venv.sh")" "$here/tiny/gate.py" "$@"
