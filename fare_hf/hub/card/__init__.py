"""The model card of a robust encoder: rendered, and rendered again from what stands beside it."""
