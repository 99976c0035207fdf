"""The mathematics in pure tensor functions: products, roots, metrics, eliminations."""
