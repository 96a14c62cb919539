"""The locks, and the audit of the packages in them."""
