"""Parts that the backends on a GPU own: caches, camera frames, pictures and their features in the GPU's memory."""
