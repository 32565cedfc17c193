"""What runs the graphs. `base.Backend` is the interface; each other module implements it with one library."""
