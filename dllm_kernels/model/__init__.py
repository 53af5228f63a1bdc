"""Plain PyTorch modules: the readable truth of the model."""
