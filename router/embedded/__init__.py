"""The embedded base: its chat template, its tokenizer, its corpus and its training."""
