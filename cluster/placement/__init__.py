"""Where the experts stand: pure functions from load and hosts to a placement."""
