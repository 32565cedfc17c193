"""`qwenvl watch`: one question about a camera's newest frame, answers as lines of JSON."""
