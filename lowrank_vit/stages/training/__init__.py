"""Fine-tuning and distillation under Lightning."""
