"""What keeps a collection in order: compaction, and calibrating again."""
