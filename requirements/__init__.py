"""The locks, and what is known of what they list."""
