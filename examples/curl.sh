#!/bin/sh
# HTTP from a shell: whether it serves, a completion, and a chat as it comes (server-sent events).
set -eu
url=${EXPERTMESH_URL:-http://127.0.0.1:8000}
auth="Authorization: Bearer ${EXPERTMESH_API_KEY:--}"

curl --fail-with-body --silent --show-error "$url/health"
echo

curl --fail-with-body --silent --show-error "$url/v1/completions" \
    -H "$auth" -H 'Content-Type: application/json' \
    -d '{"prompt": "The SELECT statement", "max_tokens": 32, "temperature": 0}'
echo

curl --fail-with-body --silent --show-error --no-buffer "$url/v1/chat/completions" \
    -H "$auth" -H 'Content-Type: application/json' \
    -d '{"messages": [{"role": "user", "content": "What is an index?"}], "max_tokens": 32, "stream": true}'
