"""What each command does, and its arguments. Heavy modules are imported only where they are used."""
