"""Which vision-language models a robust tower can be swapped into, and what differs between them."""
