"""`expertile bench history`."""
import typer

app = typer.Typer()


@app.command("add")
def add() -> None:
    """x."""
