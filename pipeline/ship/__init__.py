"""From weights to a rehearsed bundle."""
