"""What limits a training on the user's own data and machine."""
