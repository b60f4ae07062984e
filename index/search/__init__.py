"""One search: what was asked, found and answered."""
