"""The stages of a compression, in folders; none of them imports another."""
