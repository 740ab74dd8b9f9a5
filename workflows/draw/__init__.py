"""Pictures from a prompt on the command line: `request` says what is asked, `drawing` draws, `files` writes."""
