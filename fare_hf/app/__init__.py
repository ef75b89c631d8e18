"""A page to play with: attack an image before two vision-language models, and read what each of them says."""
