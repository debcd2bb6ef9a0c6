"""The serving benchmark; `benchmarks/serving.py` is the command line, `docs/benchmarks.md` the protocol."""
