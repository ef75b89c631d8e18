"""A whole evaluation from one YAML file: models x sets x radii, row after row, resumable."""
