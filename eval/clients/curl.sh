#!/usr/bin/env bash
# curl against a server: what people paste into a shell.
# usage: bash curl.sh URL
set -euo pipefail
url="${1%/}"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT

fail() {
    printf 'FAIL %s\n' "$1" >&2
    head -c 2000 "$folder/body" >&2
    exit 1
}

# Asks, keeps the body, and expects a status.
ask() {
    local name="$1" status="$2" got
    shift 2
    got="$(curl --silent --show-error --max-time 120 --output "$folder/body" --write-out '%{http_code}' "$@")"
    [ "$got" = "$status" ] || fail "$name: expected $status, got $got"
}

# Expects the body to match.
has() {
    grep --quiet --extended-regexp -- "$2" "$folder/body" || fail "$1: expected $2"
    printf 'ok   %s\n' "$1"
}

json=(--header 'Content-Type: application/json')

ask health 200 "$url/health"
printf 'ok   health\n'
ask models 200 "$url/v1/models"
has models '"object": ?"list"'
ask metrics 200 "$url/metrics"
has metrics '^# (HELP|TYPE) '

prompt='"prompt": "Question: What is 4 + 5?\nAnswer:", "max_tokens": 8, "temperature": 0'
ask completion 200 "$url/v1/completions" "${json[@]}" --data "{$prompt}"
has completion '"text": ?"'
ask stream 200 "$url/v1/completions" "${json[@]}" --no-buffer --data "{$prompt, \"stream\": true}"
has stream '^data: \{'
has 'end of stream' '^data: \[DONE\]'
ask generate 200 "$url/generate" "${json[@]}" \
    --data '{"text": "Question:", "sampling_params": {"max_new_tokens": 4, "temperature": 0}}'
has generate '"completion_tokens": ?4'

ask 'no such route' 404 "$url/v1/no-such-route"
has 'no such route' '"error"'
ask 'no JSON' 400 "$url/v1/completions" "${json[@]}" --data '{"prompt": '
has 'no JSON' '"error"'
ask 'wrong type' 400 "$url/v1/completions" "${json[@]}" --data '{"prompt": "a", "max_tokens": "many"}'
has 'wrong type' 'max_tokens'

# Who hangs up does not keep a place.
for _ in 1 2 3 4; do
    curl --silent --max-time 0.3 --output /dev/null "$url/v1/completions" "${json[@]}" \
        --data '{"prompt": "Question:", "max_tokens": 900, "ignore_eos": true, "stream": true}' || true
done
for _ in $(seq 50); do
    ask 'server info' 200 "$url/get_server_info"
    grep --quiet --extended-regexp '"running": ?0\b' "$folder/body" && break
    sleep 0.1
done
has 'hang up' '"running": ?0\b'
