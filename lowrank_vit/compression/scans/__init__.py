"""VMeanba: scans with one hidden channel in the place of all (Chi et al. 2024, arXiv 2412.16602), and what really helps.

VMamba norms the scan's output over channels. What is the same for all channels is annihilated by it, so that a scan of the
mean channel, copied back to each, has no influence: with the skip by channel the mixer computes ``W_out LN(D u)``, as if
the scan were left out; with the skip averaged, too, the constant ``W_out beta``. A refit of the output layer, by closed
form, makes up for it; what the mean channel's scan knows can then be added behind the norm.
"""
