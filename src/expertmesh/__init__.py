"""expertmesh: Mixture-of-Experts serving whose experts scale apart from attention."""

__version__ = "0.1.0"
