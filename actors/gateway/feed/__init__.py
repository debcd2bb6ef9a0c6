"""What the live page shows, as a stream of pieces."""
