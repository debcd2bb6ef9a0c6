"""What a deployment tells of itself in numbers: the catalogue of metrics, and who fills them in."""
