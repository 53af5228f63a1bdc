"""How good the text is: measured beside held-out human text and a causal language model's own samples."""
