"""Train token selectors, under Lightning; apart from the rules, which are listed without it."""
