"""A robust tower into a loaded vision-language model: checked, proven, and put back on request."""
