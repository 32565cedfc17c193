"""What this machine has, and how a program talks to its terminal."""
