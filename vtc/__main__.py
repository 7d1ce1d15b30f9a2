"""`python -m vtc …`: the Hydra entry point. Everything it does is in `vtc.cli`."""

from vtc.cli import run

if __name__ == "__main__":
    run()
