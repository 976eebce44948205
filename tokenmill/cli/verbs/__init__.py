"""One module per verb. Each holds a Typer ``app``; ``cli.app`` lists them and imports one at a time."""
