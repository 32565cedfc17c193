"""What the backends on a GPU share: memory, streams, frames."""
