"""What a measurement must leave as it was: tensors, modes, random states; and signals meanwhile."""
