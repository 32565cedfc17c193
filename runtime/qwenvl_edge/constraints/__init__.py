"""Forms that an answer is held to, and the tokens that they allow."""
