"""Keep runs of Weights & Biases; nothing else imports wandb."""
