"""Plans and configurations as objects."""
