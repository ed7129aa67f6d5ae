"""The small real checkpoint, and the scripts that made it."""
