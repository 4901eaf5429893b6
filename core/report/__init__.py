"""What a session shows when it is over."""
