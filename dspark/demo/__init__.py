"""The shipped demonstration pair: how it was made, and where it lies."""
