"""gRPC from Python: what is served, a text as it comes, and a whole answer with its figures."""

import os

import grpc

from expertmesh.proto.v1 import inference_pb2 as pb
from expertmesh.proto.v1 import inference_pb2_grpc as rpc

ADDRESS = os.environ.get("EXPERTMESH_ADDRESS", "127.0.0.1:9000")
KEY = os.environ.get("EXPERTMESH_API_KEY")
METADATA = [("authorization", f"Bearer {KEY}")] if KEY else []

with grpc.insecure_channel(ADDRESS) as channel:
    inference = rpc.InferenceStub(channel)
    for model in inference.ListModels(pb.ListModelsRequest(), metadata=METADATA).models:
        print(f"{model.name}: {model.architecture}, up to {model.max_context_tokens} tokens")

    # A message for each step. Leaving the loop early, or stream.cancel(), frees what the request holds.
    sampling = pb.SamplingParams(max_tokens=32, temperature=0.8, seed=1)
    stream = inference.GenerateStream(
        pb.GenerateRequest(prompt="The SELECT statement", params=sampling), metadata=METADATA, timeout=60
    )
    for chunk in stream:
        print(chunk.delta.text, end="", flush=True)
    print(f"\n({chunk.usage.completion_tokens} tokens, ended by {chunk.delta.finish_reason})")

    # Token ids instead of text, and the most likely tokens beside the chosen one.
    token_ids = inference.Tokenize(
        pb.TokenizeRequest(text="The SELECT statement"), metadata=METADATA
    ).token_ids
    greedy = pb.SamplingParams(max_tokens=4, temperature=0, logprobs=2)
    whole = inference.Generate(
        pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=token_ids), params=greedy),
        metadata=METADATA,
        timeout=60,
    )
    for token_id, row in zip(whole.completions[0].token_ids, whole.completions[0].logprobs, strict=True):
        others = ", ".join(f"{top.token_id}: {top.logprob:.2f}" for top in row.top)
        print(f"token {token_id}: logprob {row.chosen.logprob:.2f} (most likely: {others})")
