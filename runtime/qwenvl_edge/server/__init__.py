"""`qwenvl serve`: a bundle served over the OpenAI chat-completions protocol (the extra "server").

    HTTP -> guard (host, key) -> admission (429) -> schema -> translate -> Batcher -> render -> JSON or events

app.py holds the routes, everything that can be tested without HTTP lies in the modules it calls.
"""
