"""The gateway: HTTP, gRPC, tokenizer, limits and the open streams, without torch.

Read in this order: `requests.py` (what a client asks and gets), `validation.py` (the edge), `core.py`
(admission and the life of a request), `routers.py` (the streams to the routers), then the two faces
`http.py` and `rpc.py`, and `deployment.py`, which puts them into a Serve replica.
"""
