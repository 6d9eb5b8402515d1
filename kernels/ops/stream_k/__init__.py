"""Products whose tiles are shared out evenly among blocks."""
