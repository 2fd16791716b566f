"""The commands, a module each, named alike. A module's ``app`` is a Typer app; importing it loads nothing heavy."""
