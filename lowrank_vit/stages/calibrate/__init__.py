"""Statistics of the layers' inputs, outputs and gradients as images stream through the model."""
