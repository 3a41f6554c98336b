from pathlib import Path
def write(results: Path, docs: Path) -> None:
    pass
