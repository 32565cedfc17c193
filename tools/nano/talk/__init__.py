"""Small models that hold a conversation: scenes of many kinds of things, what visitors ask about them, and training."""
