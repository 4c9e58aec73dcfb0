#!/usr/bin/env bash
# Requests that follow the OpenAPI document, and requests that break it, against the built binary with the bundled model:
# every answer must be one that the document describes, and none a fault. At least 2,000 cases in half a minute.
#
#   tests/clients/schemathesis.sh          WORKER_ORCD_BINARY, or the debug build below the target folder
set -euo pipefail
cd "$(dirname "$0")/../.."

least=2000
mkdir -p "${CARGO_TARGET_DIR:-target}"
target="$(cd "${CARGO_TARGET_DIR:-target}" && pwd)"
binary="${WORKER_ORCD_BINARY:-$target/debug/worker-orcd}"
skipped() { printf 'SKIPPED: %s\n' "$*" >&2; }

if [ ! -x "$binary" ]; then
    echo "schemathesis: $binary is not there; cargo build makes it" >&2
    exit 1
fi
if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    skipped "schemathesis; it needs python3, 3.10 or later, with venv"
    exit 0
fi
pins=tests/clients/schemathesis.txt
venv="$target/clients/schemathesis-$(sha256sum "$pins" | cut -c1-12)"
if [ ! -e "$venv/complete" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 20 --no-deps \
        --no-compile --only-binary :all: -r "$pins"; then
        skipped "schemathesis; its packages cannot be fetched"
        exit 0
    fi
    touch "$venv/complete"
fi

work="$(mktemp -d)"
worker=
cleanup() {
    [ -z "$worker" ] || kill "$worker" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
for name in $(env | sed -n 's/^\(WORKER_ORCD_[A-Z_]*\)=.*/\1/p'); do unset "$name"; done
# Short answers: what is looked for is their shape.
"$binary" --model models/haiku-moe/haiku-moe-mxfp4.gguf --backend reference --port "$port" --log-level error \
    --context 512 --max-tokens-out 4 --max-queue 1024 2>"$work/log" &
worker=$!

url="http://127.0.0.1:$port"
"$venv/bin/python" - "$url" <<'PYTHON'
import sys, time, urllib.request

for _ in range(600):
    try:
        sys.exit(urllib.request.urlopen(sys.argv[1] + "/ready").status != 200)
    except OSError:
        time.sleep(0.1)
sys.exit("schemathesis: the worker was not ready within a minute")
PYTHON

# What follows the document may still be refused: a name no tool has, a prompt without a token. One thread: two at a
# time crash Python 3.11's parser.
for attempt in 1 2; do
    status=0
    (cd "$work" && "$venv/bin/st" --config-file "$OLDPWD/tests/clients/schemathesis.toml" --no-color run \
        "$url/openapi.json" --phases coverage,fuzzing --checks all --exclude-checks positive_data_acceptance \
        --exclude-path /shutdown --max-examples 20 --seed 1 --workers 1 --request-timeout 30 --continue-on-failure \
        --warnings off --suppress-health-check all) >"$work/report" 2>&1 || status=$?
    # A signal ended it: Python's own fault, not the worker's.
    [ "$attempt$((status > 128))" = 11 ] || break
    echo "schemathesis: crashed (status $status); once more" >&2
done
cases="$(sed -n 's/^ *\([0-9][0-9]*\) generated, .*/\1/p' "$work/report" | tail -n 1)"
if [ "$status" != 0 ]; then
    cat "$work/report" "$work/log" >&2
    exit "$status"
fi
if [ "${cases:-0}" -lt "$least" ]; then
    cat "$work/report" >&2
    echo "schemathesis: ${cases:-0} cases, expected at least $least" >&2
    exit 1
fi
kill -TERM "$worker"
if ! wait "$worker" || grep -q panicked "$work/log"; then
    worker=
    cat "$work/log" >&2
    echo "schemathesis: the worker did not end well" >&2
    exit 1
fi
worker=
echo "schemathesis: $cases cases, no fault, no answer that the document does not describe"
