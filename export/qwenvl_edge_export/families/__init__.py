"""Everything that one model family decides about its export."""
