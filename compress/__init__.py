"""Teacher -> student: everything that changes weights."""
