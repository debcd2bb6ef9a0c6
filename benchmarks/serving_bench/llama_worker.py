"""llama.cpp's server (package `xllamacpp`) in a process of its own; ends when its input is closed.

    python -P llama_worker.py MODEL.gguf THREADS SLOTS CONTEXT_TOKENS

Prints one line: the address that it listens on.
"""

from __future__ import annotations

import sys

import xllamacpp  # type: ignore[import-untyped]


def start_server(model: str, threads: int, slots: int, context_tokens: int) -> xllamacpp.Server:
    """A server that takes `slots` requests at once and remembers no prompt between requests."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_parallel, params.n_ctx = slots, context_tokens
    params.kv_unified = True
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.verbosity = 1
    return xllamacpp.Server(params)


if __name__ == "__main__":
    server = start_server(sys.argv[1], *(int(word) for word in sys.argv[2:5]))
    print(f"{server.listening_address} {xllamacpp.get_system_info().strip()}", flush=True)
    sys.stdin.read()
