#!/bin/sh
# gRPC from a shell. grpcurl asks the server for the protocol (reflection).
set -eu
address=${EXPERTMESH_ADDRESS:-127.0.0.1:9000}
auth="authorization: Bearer ${EXPERTMESH_API_KEY:--}"

grpcurl -plaintext "$address" list

grpcurl -plaintext -H "$auth" \
    -d '{"prompt": "The SELECT statement", "params": {"maxTokens": 32, "temperature": 0}}' \
    "$address" expertmesh.v1.Inference/GenerateStream

grpcurl -plaintext -H "$auth" "$address" expertmesh.v1.Cluster/GetTopology
