"""Training on pseudo labels: methods, latent labels, loop, checkpoints."""
