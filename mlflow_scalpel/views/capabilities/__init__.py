"""Which problems and skills were kept, gained and lost."""
