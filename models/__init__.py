"""What can be built: the model language, blocks, search spaces, students and teachers."""
