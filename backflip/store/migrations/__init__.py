"""How the tables came to be. A migration, once released, never changes."""
