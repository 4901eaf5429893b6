"""What runs in the processes of a trial, and the data that they read."""
