"""`qwenvl replay`: one question about the frames of a recording, answers as a recording."""
