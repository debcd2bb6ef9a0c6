"""What `helm test` runs: waits until the release serves, then asks for tokens over HTTP and over gRPC.

Where keys are asked for it also sees that it is refused without; lacking a key that is all it can do.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request

import grpc

from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc

PROMPT = "The first"
N_TOKENS = 8
CALL_S = 60.0
POLL_S = 2.0


def key() -> str:
    """The API key; empty without."""
    return os.environ.get("API_KEY", "")


def health() -> str:
    with urllib.request.urlopen(f"{os.environ['HTTP_URL']}/health", timeout=CALL_S) as response:
        return json.load(response)["state"]


def refusal() -> str:
    try:
        urllib.request.urlopen(f"{os.environ['HTTP_URL']}/v1/models", timeout=CALL_S).close()
    except urllib.error.HTTPError as error:
        if error.code == 401:
            return "401 without a key"
        raise
    sys.exit("the API answers without a key")


def over_http() -> str:
    headers = {"Content-Type": "application/json"}
    if key():
        headers["Authorization"] = f"Bearer {key()}"
    url = os.environ["HTTP_URL"]
    body = json.dumps({"model": "", "prompt": PROMPT, "max_tokens": N_TOKENS, "ignore_eos": True})
    request = urllib.request.Request(f"{url}/v1/completions", body.encode(), headers)
    with urllib.request.urlopen(request, timeout=CALL_S) as response:
        answer = json.load(response)
    assert answer["usage"]["completion_tokens"] == N_TOKENS, answer
    return answer["choices"][0]["text"]


def over_grpc() -> str:
    metadata = [("application", os.environ["APPLICATION"])]
    if key():
        metadata.append(("authorization", f"Bearer {key()}"))
    params = pb.SamplingParams(max_tokens=N_TOKENS, ignore_eos=True)
    with grpc.insecure_channel(os.environ["GRPC_ADDRESS"]) as channel:
        answer = rpc.InferenceStub(channel).Generate(
            pb.GenerateRequest(prompt=PROMPT, params=params), timeout=CALL_S, metadata=metadata
        )
    [completion] = answer.completions
    assert len(completion.token_ids) == N_TOKENS, answer
    return completion.text


def main() -> None:
    deadline_s = time.monotonic() + float(os.environ["TIMEOUT_S"])
    asks_for_keys = bool(os.environ.get("ASKS_FOR_KEYS"))
    generate = (over_http, over_grpc) if key() or not asks_for_keys else ()
    for ask in (health, *((refusal,) if asks_for_keys else ()), *generate):
        while True:
            try:
                print(f"{ask.__name__}: {ask()!r}", flush=True)
                break
            except (OSError, grpc.RpcError) as error:
                if time.monotonic() > deadline_s:
                    sys.exit(f"{ask.__name__}: {error}")
                time.sleep(POLL_S)


if __name__ == "__main__":
    main()
