"""Forms that an answer keeps to, and the tokens that they allow."""
