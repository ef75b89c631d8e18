"""Images to pixels: what a data set holds, opened, looked at and made reproducible sample by sample."""
