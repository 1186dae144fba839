"""pyjepa and other libraries. Each adapter imports what it adapts, and is imported only where it is asked for."""
