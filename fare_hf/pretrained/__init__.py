"""Models that strangers published: configuration, weights and processors, read, bounded and checked."""
