"""The expert exchange: how token batches reach expert hosts and come back."""
