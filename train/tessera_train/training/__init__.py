"""Training loops, recipes, optimisers and losses."""
