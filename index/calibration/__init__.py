"""From what the nearest items say to probabilities, lines and sets that hold."""
