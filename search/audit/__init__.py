"""What can be wrong with a records folder, and what mends it."""
