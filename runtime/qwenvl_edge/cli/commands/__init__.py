"""The commands of the program `qwenvl`, one per module; `qwenvl serve` is in server/command.py."""
