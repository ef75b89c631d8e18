"""What builds the lab inside the package: its data, its CLIP, its LLaVA. Run from the repository's root."""
