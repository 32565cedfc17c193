"""Servers on scripted answers of the families that have tools, reasoning and clips."""

from __future__ import annotations

from support.families import scripted_engine

ONE = {"rows": 1}
"""Limits of a server whose backend is scripted: its batches have one row."""
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'


def scripted(folder, name, *answers, **changes):
    """A scripted engine, whose backend also takes part in a batch of one row, its backend and its tokenizer."""
    engine, backend, tokenizer = scripted_engine(folder, name, *answers, options={"max_context": 3000}, **changes)
    copy, batches = backend.copy_cache, set()

    def copy_cache(source, target, tokens, *, row=0):
        copy(source, target, tokens, row=row)
        if not hasattr(target, "positions") or target in batches:
            batches.add(target)
            target.prompt, target.positions, target.length = source.prompt, source.positions, tokens

    backend.copy_cache = copy_cache
    return engine, backend, tokenizer
