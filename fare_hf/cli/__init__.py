"""The command line: one file a command. `main` finds the command, and imports what runs it when it runs."""
