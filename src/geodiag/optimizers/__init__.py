"""What the core knows of optimizers: geometries and their stability thresholds."""
