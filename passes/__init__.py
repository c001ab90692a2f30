"""Everything from Graph to Graph: passes, dependency groups, pruning, sparsity."""
