"""Joint training of latent encoder, denoiser and decoders (arXiv:2605.07933); docs/training.md has the formulas."""
