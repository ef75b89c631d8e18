"""Vision-language models under attack: captions, questions, forced strings, transfer."""
