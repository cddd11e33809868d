#!/usr/bin/env bash
# GSM8K, 5 shots, against a server:
#   bash eval/gsm8k.sh URL MODEL TOKENIZER [more flags of lm_eval, as --limit 100]
# URL as http://127.0.0.1:8000, MODEL as the server lists it, TOKENIZER a folder; a key in
# OPENAI_API_KEY. CONCURRENCY (32) requests are under way at once, MAX_LENGTH (what the server
# says) tokens fit a request, which is given up after TIMEOUT (3600) seconds.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
if [ $# -lt 3 ]; then
    sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
url="${1%/}" model="$2" tokenizer="$(cd "$3" && pwd)"
shift 3
python="$(bash "$here/venv.sh")"

# The task names its files from here; nothing is fetched.
cd "$here/gsm8k"
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
length="$("$python" preflight.py "$url" "$model" "$tokenizer" ${MAX_LENGTH:+"$MAX_LENGTH"})"
# A request's time includes its turn behind the others: lm_eval's own 300 s end a run on a slow server.
exec "$python" -m lm_eval run --model local-completions --tasks gsm8k_local --include_path . \
    --model_args "base_url=$url/v1/completions,model=$model,tokenizer=$tokenizer,num_concurrent=${CONCURRENCY:-32},max_length=$length,timeout=${TIMEOUT:-3600}" \
    "$@"
