"""The items of a collection, and what is known of its labels."""
