"""The targets of a factor study: levels of factors, the balanced grid, matched pairs."""
