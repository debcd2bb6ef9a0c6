"""Parts of the benchmarks that change or break a deployment under load."""
