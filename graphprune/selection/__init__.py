"""From scores to a mask: rankings, circuits without dead ends, exact budgets, integer programs."""
