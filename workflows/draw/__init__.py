"""Pictures from a prompt on the command line: `request` holds the settings, `drawing` draws, `files` writes."""
