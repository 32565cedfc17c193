"""A bundle compared with the reference network of its checkpoint."""
