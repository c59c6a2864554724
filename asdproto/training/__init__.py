"""Training: two stages, one loop, the same pure step on one device, on many, and in a sweep."""
