"""`python -m tilewright`: the command line."""
from tilewright.tools.cli import app

app()
