"""Files and texts, those of strangers above all: read with bounds, written whole or not at all."""
