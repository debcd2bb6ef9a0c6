"""The shared parts that architectures are composed of: attention, feed-forward kinds, rotary tables."""
