"""A robust tower into a published vision-language model, file by file, here or on the Hub."""
