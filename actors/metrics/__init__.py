"""Metrics on their way to Ray, and what each process says of itself."""
