"""Models: loading, the forward that samples, scores and trains, adapters, heads, saving."""
