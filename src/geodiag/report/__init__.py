"""What people look at: figures, a self-contained page, a table in the terminal."""
