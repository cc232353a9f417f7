"""What is kept, in PostgreSQL; implements ports of the middle rooms and lets no row out."""
