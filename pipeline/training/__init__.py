"""Teachers and students learn."""
