"""Networks with attention slots, and discriminators."""
