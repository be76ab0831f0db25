"""What the commands over runs and models do: sweep, duel, look and study."""
