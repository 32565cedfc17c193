"""From words, pictures and frames to a prompt."""
