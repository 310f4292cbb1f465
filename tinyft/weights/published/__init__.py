"""Published weights: which there are, fetching them, and where they are kept."""
