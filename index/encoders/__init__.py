"""From texts and pictures to unit vectors."""
